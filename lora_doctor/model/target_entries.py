"""What the entries of an adapter config name in a model, by the installed PEFT's own matcher."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_doctor.model.meta_copy import Meaning
from lora_doctor.model.modules import unwrap, walk
from lora_doctor.model.own_saved_modules import added_by_peft
from lora_doctor.results.injection import Converted, Unmatched
from lora_doctor.text import clean_path


def meaning(config: Any) -> Meaning | None:
    """What the config makes of a path, by PEFT's matcher; ``None``: every layer may be special."""
    if getattr(config, "layer_replication", None) or getattr(config, "xlora_depth", None):
        return None
    matcher = target_matcher(config)
    targets = getattr(config, "target_modules", None)
    by_name = targets is not None and str(targets).lower() != "all-linear"
    parameters = list(getattr(config, "target_parameters", None) or ())
    saved = list(getattr(config, "modules_to_save", None) or ())
    patterns = [pattern for values in value_patterns(config).values() for pattern in values]

    def mean(path: str) -> object:
        return (
            bool(matcher(config, path)) if by_name and matcher else False,
            any(path == item or path.endswith(f".{item}") for item in parameters),
            any(path.endswith(item) for item in saved),
            tuple(_matches(pattern, path) for pattern in patterns),
        )

    return mean


def value_patterns(config: Any) -> dict[str, Mapping[str, Any]]:
    """The keys of this kind of adapter that give single layers a value of their own, such as
    ``rank_pattern``, each with what it maps."""
    keys = [one.name for one in dataclasses.fields(config) if one.name.endswith("_pattern")]
    values = {key: getattr(config, key) for key in keys}
    return {key: one for key, one in values.items() if isinstance(one, Mapping) and one}


def target_matcher(config: Any) -> Any:
    """PEFT's own ``(config, path) -> matches`` for this kind of adapter, ``None`` without one."""
    return getattr(tuner_class(config), "_check_target_module_exists", None)


def tuner_class(config: Any) -> Any:
    """The class with which PEFT puts this kind of adapter on; ``None`` where it has none."""
    for module_name in ("peft.mapping", "peft.peft_model"):
        module = importlib.import_module(module_name)
        tuners = getattr(module, "PEFT_TYPE_TO_TUNER_MAPPING", None)
        if tuners is not None:
            return tuners.get(config.peft_type)
    return None


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error:  # PEFT will say so itself when it gets there
        return False


class Names:
    """Every module and parameter path of the model at full size."""

    def __init__(self, model: Any) -> None:
        self.modules: list[str] = []
        self.parameters: list[str] = []
        for path, module, _ in walk(model):
            if path:
                self.modules.append(path)
            for name in unwrap(module)._parameters:
                self.parameters.append(f"{path}.{name}" if path else name)


def unmatched_entries(
    wished: dict[str, Any], config: Any, names: Names, converted: Sequence[Converted]
) -> tuple[Unmatched, ...]:
    """Entries that name nothing, each asked alone; PEFT says nothing about them."""
    missing = []
    turned = {one.entry for one in converted}
    targets = wished["target_modules"]
    entries = [targets] if isinstance(targets, str) else list(targets or ())
    for entry in entries:
        if entry in turned:
            continue
        if isinstance(targets, str) and entry.lower() == "all-linear":
            continue  # in a list it is a name like any other
        alone = entry if isinstance(targets, str) else [entry]
        if not _names_a_module(config, alone, names.modules):
            missing.append(Unmatched("target_modules", str(entry)))
    for entry in wished["target_parameters"] or ():
        if not any(path == entry or path.endswith(f".{entry}") for path in names.parameters):
            missing.append(Unmatched("target_parameters", str(entry)))
    return tuple(missing) + _unmatched_saved(wished["modules_to_save"] or (), config, names)


def names_of_nothing(config: Any, entries: Sequence[str], model: Any) -> list[str]:
    """Those of the entries that are the name of no module of ``model``, wrapped or not, whatever
    other keys leave out."""
    if not entries:
        return []
    paths = [clean_path(path) for path, _ in model.named_modules() if path]
    return [entry for entry in entries if not _names_a_module(config, [entry], paths)]


def _unmatched_saved(entries: Sequence[str], config: Any, names: Names) -> tuple[Unmatched, ...]:
    lost = [one for one in entries if not any(path.endswith(one) for path in names.modules)]
    own = added_by_peft(getattr(config, "task_type", None)) if lost else frozenset()
    return tuple(Unmatched("modules_to_save", str(one)) for one in lost if one not in own)


def asked_for(config: Any, names: Names) -> list[str]:
    """Paths of the modules that the targets name, by PEFT's matcher."""
    matcher = target_matcher(config)
    targets = getattr(config, "target_modules", None)
    if matcher is None or not targets or str(targets).lower() == "all-linear":
        return []
    try:
        return [path for path in names.modules if matcher(config, path)]
    except re.error:
        return []


def _names_a_module(config: Any, targets: Any, paths: Sequence[str]) -> bool:
    """Whether PEFT's matcher finds one module for these targets, other conditions left out."""
    import copy

    matcher = target_matcher(config)
    if matcher is None:
        return True
    question = copy.copy(config)
    question.target_modules = targets
    for key in ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"):
        if hasattr(question, key):
            setattr(question, key, None)
    try:
        return any(bool(matcher(question, path)) for path in paths)
    except re.error:  # not a regular expression: it names nothing, and PEFT's error says why
        return False
