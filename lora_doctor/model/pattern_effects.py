"""Entries of an adapter config that change nothing on this model, asked of PEFT's own matchers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lora_doctor.model.modules import is_adapter_layer
from lora_doctor.model.target_entries import tuner_class, value_patterns
from lora_doctor.results.injection import Unmatched

#: ``(config, path) -> matches``; a module that is excluded counts as no match.
Matcher = Callable[[Any, str], Any]


class LookedUp(dict[str, Any]):
    """The values of a key such as ``rank_pattern``, which keeps what PEFT took while it put the
    adapters on. Kinds of adapters read such keys by expressions of their own: none is repeated
    here."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        #: Names that were asked for, those that are no keys too.
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __deepcopy__(self, memo: Any) -> LookedUp:
        return self  # what is asked of a copy of the config is asked of this one

    def __reduce__(self) -> Any:
        return (dict, (dict(self),))


def watched_patterns(config: Any) -> dict[str, LookedUp]:
    """``config``'s keys with a value for single layers, replaced by what keeps its look-ups."""
    watched = {key: LookedUp(values) for key, values in value_patterns(config).items()}
    for key, values in watched.items():
        setattr(config, key, values)
    return watched


def never_taken(watched: Mapping[str, LookedUp]) -> tuple[Unmatched, ...]:
    """Entries that PEFT took for no layer, of the keys in which it looked layers up one by one."""
    return tuple(
        Unmatched(key, entry)
        for key, values in watched.items()
        if values.asked
        for entry in values
        if entry not in values.asked
    )


def without_effect(
    config: Any,
    matcher: Matcher | None,
    modules: Sequence[str],
    adapted: Iterable[str],
    *,
    all_linear: bool = False,
) -> tuple[Unmatched, ...]:
    """Entries of ``rank_pattern`` and its like, ``exclude_modules``, ``layers_to_transform`` and
    ``feedforward_modules`` without which PEFT would put the same adapters on. Not of a key whose
    look-ups are watched: ``never_taken`` tells of those.

    ``modules``: paths of all modules; ``adapted``: of those that have an adapter. ``all_linear``:
    PEFT chose the targets, and has written those of the model that it was handed into ``config``;
    an entry that excludes any module at all then counts.
    """
    paths = sorted(adapted)
    found = [
        Unmatched(key, entry)
        for key, values in value_patterns(config).items()
        if not isinstance(values, LookedUp)
        for entry in _unused(values, paths)
    ]
    feedforward = _feedforward(config, paths)
    if feedforward:
        found.append(feedforward)
    if matcher is not None:
        question = copy.copy(config)
        if all_linear:
            question.target_modules = ".*"
        found += [
            Unmatched("exclude_modules", one) for one in _excludes(question, matcher, modules)
        ]
        found += [
            Unmatched("layers_to_transform", one) for one in _layers(config, matcher, modules)
        ]
    return tuple(found)


def untrained_bias(wrapped: Any, config: Any) -> tuple[Unmatched, ...]:
    """``bias``, where layers that it speaks of have biases and PEFT has left all of them frozen."""
    asked = getattr(config, "bias", "none")
    if not isinstance(asked, str) or asked == "none":
        return ()
    layers = [module for module in wrapped.modules() if is_adapter_layer(module)]
    biases = [
        value
        for layer in layers
        if (value := getattr(_innermost(layer), "bias", None)) is not None
        and hasattr(value, "requires_grad")
    ]
    frozen = bool(biases) and not any(value.requires_grad for value in biases)
    return (Unmatched("bias", asked),) if frozen else ()


def _innermost(layer: Any) -> Any:
    while is_adapter_layer(layer):
        layer = layer.base_layer
    return layer


def _unused(pattern: Any, adapted: Sequence[str]) -> list[str]:
    """Keys that PEFT takes for no adapter; the first key that matches a path is taken."""
    keys = [str(key) for key in pattern]
    taken = {_pattern_key(keys, path) for path in adapted}
    return [key for key in keys if key not in taken]


def _pattern_key(keys: Sequence[str], path: str) -> str:
    try:
        from peft.utils.other import get_pattern_key
    except ImportError:  # until PEFT 0.13 the same stands in the middle of each tuner
        return next((key for key in keys if re.match(rf".*\.{key}$", path)), path)
    return str(get_pattern_key(keys, path))


def _feedforward(config: Any, adapted: Sequence[str]) -> Unmatched | None:
    """``feedforward_modules`` of IA3, where it matches none of the adapted layers."""
    asked = getattr(config, "feedforward_modules", None)
    if not asked or not adapted:
        return None
    matches = getattr(tuner_class(config), "_check_target_module_feedforward", None)
    if matches is None or any(matches(config, path) for path in adapted):
        return None
    return Unmatched("feedforward_modules", asked if isinstance(asked, str) else ", ".join(asked))


def _excludes(config: Any, matcher: Matcher, modules: Sequence[str]) -> list[str]:
    entries = getattr(config, "exclude_modules", None)
    if not entries:
        return []
    whole = _matched(config, matcher, modules, exclude_modules=None)
    alone = [entries] if isinstance(entries, str) else [[entry] for entry in sorted(entries)]
    return [
        one if isinstance(one, str) else str(one[0])
        for one in alone
        if _matched(config, matcher, whole, exclude_modules=one) == whole
    ]


def _layers(config: Any, matcher: Matcher, modules: Sequence[str]) -> list[str]:
    asked = getattr(config, "layers_to_transform", None)
    indices = [asked] if isinstance(asked, int) else list(asked or ())
    others = {"exclude_modules": None} if hasattr(config, "exclude_modules") else {}
    return [
        str(index)
        for index in indices
        if not _matched(config, matcher, modules, layers_to_transform=[index], **others)
    ]


def _matched(config: Any, matcher: Matcher, modules: Sequence[str], **changes: Any) -> list[str]:
    """The modules that the targets name, with these keys changed."""
    question = copy.copy(config)
    for key, value in changes.items():
        setattr(question, key, value)
    return [path for path in modules if bool(matcher(question, path))]
