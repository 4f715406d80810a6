"""The real adapter config, injected by the installed PEFT into a meta copy of the model.

PEFT is asked, never imitated: its own matcher says what an entry names, its own
``get_peft_model`` says what happens, and the wrapped model is read afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_doctor.errors import LoraDoctorError
from lora_doctor.model.loading import peft_config
from lora_doctor.model.loose_matches import copied_modules, loose_matches, module_sizes
from lora_doctor.model.meta_copy import Meaning, MetaCopy, meta_copy
from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.modules import elements, is_adapter_layer, unwrap, walk
from lora_doctor.model.pattern_effects import without_effect
from lora_doctor.model.peft_models import other_parts
from lora_doctor.model.reloading import not_reloaded
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.structure import (
    Converted,
    ErrorReport,
    Injection,
    LooseMatch,
    Unmatched,
)
from lora_doctor.text import single_line

ADAPTER_NAME = "default"
_TRACEBACK_LINES = 60
#: How torch says that a tensor without storage was asked for a number, or met one that has some.
_NEEDS_NUMBERS = re.compile(
    r"register_meta|\bmeta'? (tensors?|device|backend|kernel)\b|\bdevices?\b.{0,40}\bmeta\b",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Injected:
    """The result, with the paths that carry adapters (parameters as ``module.parameter``)."""

    result: Injection
    adapted: dict[str, int]


def inject(model: Any, recipe: Recipe) -> Injected:
    """Wrap a meta copy of ``model`` with the recipe's adapter config and read what PEFT did.

    ``model`` itself stays as it is. An exception of PEFT's is the result, not raised.
    """
    wished = _values(recipe)
    try:
        config = _plain_initialisation(peft_config(recipe))
    except LoraDoctorError:
        raise
    except Exception as error:  # noqa: BLE001 - what PEFT refuses is the evidence
        return Injected(Injection(ok=False, error=report(error)), {})
    thinned = meta_copy(model, meaning(config))
    names = _Names(model)
    seen: list[str] = []
    wrapped = None
    error_report = None
    with _recorded(seen):
        try:
            wrapped = _wrap(thinned.model, config)
        except Exception as error:  # noqa: BLE001 - what PEFT refuses is the evidence
            error_report = report(error)
    converted = _converted(wished, config, thinned.model)
    unmatched = _unmatched(wished, config, names, converted)
    if error_report is not None and _NEEDS_NUMBERS.search(error_report.message):
        return _by_name(config, names, Injection(
            ok=True, unmatched=unmatched, resolved_targets=_resolved(config),
            warnings=tuple(seen), not_made=str(error_report),
        ))  # fmt: skip
    if wrapped is None:
        return Injected(
            Injection(
                ok=False,
                error=error_report,
                unmatched=unmatched,
                loose_matches=_loose(model, wished, _asked_for(config, names), None),
                converted=converted,
                warnings=tuple(seen),
            ),
            {},
        )
    counts = _Counts(wrapped, thinned, config, (ADAPTER_NAME,))
    all_linear = str(wished["target_modules"]).lower() == "all-linear"
    unmatched += _without_effect(config, names, counts, all_linear)
    again = not_reloaded(wrapped, ADAPTER_NAME)
    return Injected(
        Injection(
            ok=True,
            wrapper=type(wrapped).__name__,
            unmatched=unmatched,
            loose_matches=_loose(model, wished, counts.adapted, wrapped),
            converted=converted,
            resolved_targets=_resolved(config),
            warnings=tuple(seen),
            adapter_parameters=counts.adapter,
            trainable_parameters=counts.trainable,
            total_parameters=counts.total,
            trainable_other=tuple(counts.other),
            trainable_adapter_parameters=counts.trainable_adapter,
            trainable_other_parameters=counts.trainable_other,
            not_reloaded=again.patterns,
            not_reloaded_example=again.example,
        ),
        counts.adapted,
    )


def _by_name(config: Any, names: _Names, known: Injection) -> Injected:
    """Where adapters would sit by PEFT's matcher, of a kind that cannot be made without weights."""
    matcher = target_matcher(config)
    paths = [path for path in names.modules if matcher is not None and matcher(config, path)]
    effects = without_effect(config, matcher, names.modules, paths)
    return Injected(replace(known, unmatched=known.unmatched + effects), dict.fromkeys(paths, 1))


def read_wrapped(wrapped: Any, adapter: str, others: Sequence[str] = ()) -> Injected:
    """What is in a model that the user has wrapped already; nothing is injected.

    ``others``: adapters that are active beside this one.
    """
    config = wrapped.peft_config[adapter]
    names = _Names(_base_of(wrapped))
    wished = {
        key: getattr(config, key, None)
        for key in ("target_modules", "target_parameters", "modules_to_save")
    }
    counts = _Counts(wrapped, MetaCopy(wrapped, {}), config, (adapter, *others))
    result = Injection(
        ok=True,
        wrapper=type(wrapped).__name__,
        unmatched=_unmatched(wished, config, names, ()) + _without_effect(config, names, counts),
        loose_matches=_loose(_base_of(wrapped), wished, counts.adapted, wrapped),
        resolved_targets=_resolved(config),
        adapter_parameters=counts.adapter,
        trainable_parameters=counts.trainable,
        total_parameters=counts.total,
        trainable_other=tuple(counts.other),
        trainable_adapter_parameters=counts.trainable_adapter,
        trainable_other_parameters=counts.trainable_other,
    )
    return Injected(result, counts.adapted)


def _base_of(wrapped: Any) -> Any:
    """The model that a wrapper of PEFT's was put around."""
    if hasattr(wrapped, "get_base_model"):
        return wrapped.get_base_model()
    return getattr(getattr(wrapped, "base_model", None), "model", wrapped)  # a mixed model's


def report(error: BaseException) -> ErrorReport:
    """An exception as data; ``where`` is the deepest frame, so in the library that refused."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return ErrorReport(
        type(error).__name__,
        single_line(str(error)),
        where,
        "\n".join(lines.splitlines()[-_TRACEBACK_LINES:]),
    )


def meaning(config: Any) -> Meaning | None:
    """What the config makes of a path, by PEFT's matcher; ``None``: every layer may be special."""
    if getattr(config, "layer_replication", None) or getattr(config, "xlora_depth", None):
        return None
    matcher = target_matcher(config)
    targets = getattr(config, "target_modules", None)
    by_name = targets is not None and str(targets).lower() != "all-linear"
    parameters = list(getattr(config, "target_parameters", None) or ())
    saved = list(getattr(config, "modules_to_save", None) or ())
    patterns = [
        pattern
        for key in ("rank_pattern", "alpha_pattern")
        for pattern in getattr(config, key, None) or {}
    ]

    def mean(path: str) -> object:
        return (
            bool(matcher(config, path)) if by_name and matcher else False,
            any(path == item or path.endswith(f".{item}") for item in parameters),
            any(path.endswith(item) for item in saved),
            tuple(_matches(pattern, path) for pattern in patterns),
        )

    return mean


def target_matcher(config: Any) -> Any:
    """PEFT's own ``(config, path) -> matches`` for this kind of adapter, ``None`` without one."""
    for module_name in ("peft.mapping", "peft.peft_model"):
        module = importlib.import_module(module_name)
        tuners = getattr(module, "PEFT_TYPE_TO_TUNER_MAPPING", None)
        if tuners is None:
            continue
        tuner = tuners.get(config.peft_type)
        return getattr(tuner, "_check_target_module_exists", None)
    return None


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error:  # PEFT will say so itself when it gets there
        return False


def _values(recipe: Recipe) -> dict[str, Any]:
    """The target keys as the recipe has them; PEFT changes the config object in place."""
    keys = ("target_modules", "target_parameters", "modules_to_save")
    return {key: recipe.get(key) for key in keys}


def _plain_initialisation(config: Any) -> Any:
    """Initialisations that look at the weights need weights; where adapters sit is the same."""
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start.lower() != "gaussian":
        config.init_lora_weights = True
    return config


def plain_wrap(model: Any, config: Any) -> Any:
    """Wrap a meta copy with this config, initialised without looking at weights; raises what PEFT
    raises."""
    return _wrap(model, _plain_initialisation(config))


def _wrap(model: Any, config: Any) -> Any:
    import peft
    import torch

    options: dict[str, Any] = {}
    if "low_cpu_mem_usage" in inspect.signature(peft.get_peft_model).parameters:
        options["low_cpu_mem_usage"] = True
    with torch.device("meta"):
        return peft.get_peft_model(model, config, adapter_name=ADAPTER_NAME, **options)


@contextlib.contextmanager
def _recorded(seen: list[str]) -> Iterator[None]:
    """Warnings about the adapter raised inside, one line each; not those about old names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for item in caught:
        if issubclass(item.category, (DeprecationWarning, FutureWarning)):
            continue
        text = single_line(str(item.message))
        if text not in seen:
            seen.append(text)


class _Names:
    """Every module and parameter path of the model at full size."""

    def __init__(self, model: Any) -> None:
        self.modules: list[str] = []
        self.parameters: list[str] = []
        for path, module, _ in walk(model):
            if path:
                self.modules.append(path)
            for name in unwrap(module)._parameters:
                self.parameters.append(f"{path}.{name}" if path else name)


def _unmatched(
    wished: dict[str, Any], config: Any, names: _Names, converted: Sequence[Converted]
) -> tuple[Unmatched, ...]:
    """Entries that name nothing, each asked alone; PEFT says nothing about them."""
    missing = []
    turned = {one.entry for one in converted}
    targets = wished["target_modules"]
    entries = [targets] if isinstance(targets, str) else list(targets or ())
    for entry in entries:
        if entry in turned or str(entry).lower() == "all-linear":
            continue
        alone = entry if isinstance(targets, str) else [entry]
        if not _names_a_module(config, alone, names.modules):
            missing.append(Unmatched("target_modules", str(entry)))
    for entry in wished["target_parameters"] or ():
        if not any(path == entry or path.endswith(f".{entry}") for path in names.parameters):
            missing.append(Unmatched("target_parameters", str(entry)))
    for entry in wished["modules_to_save"] or ():
        if not any(path.endswith(entry) for path in names.modules):
            missing.append(Unmatched("modules_to_save", str(entry)))
    return tuple(missing)


def _loose(
    model: Any, wished: dict[str, Any], adapted: Iterable[str], wrapped: Any
) -> tuple[LooseMatch, ...]:
    """``wrapped``: the model after ``get_peft_model``, ``None`` where that raised."""
    entries = wished["modules_to_save"] or ()
    if not entries or isinstance(entries, str):
        return ()
    copied = None if wrapped is None else copied_modules(_base_of(wrapped))
    return loose_matches(entries, module_sizes(model), adapted, copied)


def _asked_for(config: Any, names: _Names) -> list[str]:
    """Paths of the modules that the targets name, by PEFT's matcher."""
    matcher = target_matcher(config)
    targets = getattr(config, "target_modules", None)
    if matcher is None or not targets or str(targets).lower() == "all-linear":
        return []
    try:
        return [path for path in names.modules if matcher(config, path)]
    except re.error:
        return []


def _without_effect(
    config: Any, names: _Names, counts: _Counts, all_linear: bool = False
) -> tuple[Unmatched, ...]:
    matcher, adapted = target_matcher(config), counts.adapted
    return without_effect(config, matcher, names.modules, adapted, all_linear=all_linear)


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


def _converted(wished: dict[str, Any], config: Any, model: Any) -> tuple[Converted, ...]:
    """What this PEFT turned from target modules into parameters."""
    before = set(wished["target_parameters"] or ())
    added = sorted(set(getattr(config, "target_parameters", None) or ()) - before)
    targets = wished["target_modules"]
    if not added or not targets:
        return ()
    left = config.target_modules
    if isinstance(targets, str):
        return tuple(Converted(targets, (name,)) for name in added)
    gone = [entry for entry in targets if isinstance(left, (set, list)) and entry not in left]
    alone: dict[str, str] = {}
    for entry in gone:
        parameter = _converts_alone(entry, model)
        if parameter in added:
            alone[entry] = str(parameter)
    rest = tuple(name for name in added if name not in alone.values())
    return tuple(
        Converted(entry, (alone[entry],) if entry in alone else rest or tuple(added))
        for entry in gone
    )


def _converts_alone(entry: str, model: Any) -> str | None:
    """What PEFT makes of one entry; several that are fused into one parameter it refuses alone."""
    import peft

    try:
        module = importlib.import_module("peft.utils.transformers_weight_conversion")
    except ImportError:  # this PEFT converts nothing
        return None
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    question = peft.LoraConfig(target_modules=[entry])
    try:
        module.convert_peft_config_for_transformers(
            question, model=base, conversions=module.get_model_conversion_mapping(base)
        )
    except ValueError:
        return None
    names = list(question.target_parameters or ())
    return str(names[0]) if len(names) == 1 else None


def _resolved(config: Any) -> tuple[str, ...]:
    targets = getattr(config, "target_modules", None)
    if not targets:
        return ()
    if isinstance(targets, str):
        return (targets,)
    # Full paths (`all-linear`) and PEFT's shortened ones come out alike: as leaf names.
    shown = {re.search(r"[^.]*(\.\*)?$", pattern_of(str(name))) for name in targets}
    return tuple(sorted({match.group() for match in shown if match}))


class _Counts:
    """What is in a wrapped model: adapters, and everything that would be trained."""

    def __init__(
        self, wrapped: Any, thinned: MetaCopy, config: Any, adapters: tuple[str, ...]
    ) -> None:
        self.names = adapters
        base = _base_of(wrapped)
        self.adapted: dict[str, int] = {}
        self.adapter = self.trainable = self.total = 0
        self.trainable_adapter = self.trainable_other = 0
        self.other: list[str] = []
        keep_bias = getattr(config, "bias", "none") != "none"
        ours, saved = adapter_parameters(wrapped, adapters)
        for path, module, _ in walk(base):
            self._adapters_of(path, module, thinned)
        prefix = next((f"{path}." for path, item in wrapped.named_modules() if item is base), "")
        for name, value in wrapped.named_parameters():
            inside = name.startswith(prefix)
            path = name.removeprefix(prefix) if inside else name
            size = elements(value) * (thinned.times(path) if inside else 1)
            self.total += size
            is_ours = id(value) in ours or not inside
            self.adapter += size if is_ours else 0
            if not value.requires_grad:
                continue
            self.trainable += size
            self.trainable_adapter += size if is_ours else 0
            wanted = is_ours or id(value) in saved or (keep_bias and "bias" in name)
            if not wanted:
                self.trainable_other += size
                pattern = pattern_of(path.replace(".base_layer", ""))
                if pattern not in self.other:
                    self.other.append(pattern)

    def _adapters_of(self, path: str, module: Any, thinned: MetaCopy) -> None:
        """Note what this module carries: nested parameter wrappers are one module."""
        while is_adapter_layer(module):
            if _has_adapter(module, self.names):
                parameter = getattr(module, "parameter_name", None)
                key = f"{path}.{parameter}" if parameter else path
                self.adapted[key] = thinned.times(path)
            module = module.base_layer


def _has_adapter(layer: Any, names: Sequence[str]) -> bool:
    for attribute in layer.adapter_layer_names:
        held = getattr(layer, attribute, None)
        if held is not None and hasattr(held, "keys") and any(name in held for name in names):
            return True
    return False


def adapter_parameters(model: Any, names: Sequence[str]) -> tuple[set[int], set[int]]:
    """Ids of the parameters of these adapters, and of the modules that are saved with them."""
    ours: set[int] = set()
    saved: set[int] = set()
    for module in model.modules():
        if is_adapter_layer(module):
            for attribute in module.adapter_layer_names:
                held: Any = getattr(module, attribute, None)
                for name in names if hasattr(held, "keys") else ():
                    if name in held:
                        ours.update(_ids(held[name]))
        copies: Any = getattr(module, "modules_to_save", None)
        if hasattr(module, "original_module") and hasattr(copies, "keys"):
            for key in copies:
                saved.update(_ids(copies[key]))
    for _, part in other_parts(model):
        ours.update(id(value) for value in part.parameters() if value.requires_grad)
    return ours, saved


def _ids(held: Any) -> set[int]:
    if hasattr(held, "parameters"):
        return {id(value) for value in held.parameters()}
    return {id(held)}
