"""Modules that an entry of ``modules_to_save`` names by the end of their name only.

PEFT compares ends of paths there without a dot before them: ``attn`` names every ``self_attn`` as
well. For ``target_modules`` the dot is required.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_doctor.model.module_path import pattern_of
from lora_doctor.model.modules import walk
from lora_doctor.results.injection import LooseMatch


def loose_matches(
    entries: Iterable[str],
    sizes: Mapping[str, int],
    adapted: Iterable[str],
    copied: set[str] | None,
) -> tuple[LooseMatch, ...]:
    """For each entry that hits more than the modules of this name, what else it hits.

    Args:
        entries: of ``modules_to_save``, as the user has them.
        sizes: paths of all modules of the model at full size, each with its parameters.
        adapted: paths of layers that have adapters.
        copied: patterns of the modules of which PEFT made a trained copy; ``None`` where it raised.
    """
    layers = {pattern_of(path) for path in adapted}
    found = (_of_entry(str(entry), sizes, layers, copied) for entry in entries)
    return tuple(match for match in found if match is not None)


def copied_modules(base: Any) -> set[str]:
    """Patterns of the modules of a wrapped model of which PEFT made a trained copy."""
    return {
        pattern_of(path)
        for path, module, _ in walk(base)
        if hasattr(module, "original_module") and hasattr(module, "modules_to_save")
    }


def module_sizes(model: Any) -> dict[str, int]:
    """Paths of all modules, adapters seen through, each with the parameters in all of it."""
    sizes: dict[str, int] = {}
    for path, module, _ in walk(model):
        if path:
            sizes[path] = sum(value.numel() for value in module.parameters())
    return sizes


def _of_entry(
    entry: str, sizes: Mapping[str, int], layers: set[str], copied: set[str] | None
) -> LooseMatch | None:
    hits = [
        path
        for path in sizes
        if path.endswith(entry) and (copied is None or pattern_of(path) in copied)
    ]
    meant = [path for path in hits if path == entry or path.endswith(f".{entry}")]
    loose = _outermost([path for path in hits if path not in meant])
    names = {path.rpartition(".")[2] for path in loose}
    if not loose or (not meant and len(names) == 1 and not _holds(loose, layers)):
        return None  # the one name that can be meant: `head` of a model with an `lm_head`
    patterns = tuple(dict.fromkeys(map(pattern_of, loose)))
    inside = tuple(f"{path}." for path in loose)
    return LooseMatch(
        entry=entry,
        patterns=patterns,
        modules=len(loose),
        parameters=sum(sizes[path] for path in loose),
        blocks=any(path.startswith(inside) for path in sizes),
        adapted=tuple(sorted(_holds(loose, layers))),
        meant=tuple(dict.fromkeys(map(pattern_of, meant))),
        meant_parameters=sum(sizes[path] for path in _outermost(meant)),
    )


def _outermost(paths: Sequence[str]) -> list[str]:
    """The paths that lie in no other of them."""
    kept: list[str] = []
    for path in paths:  # in the order of the modules: what holds others comes first
        if not any(path.startswith(f"{outer}.") for outer in kept[-1:]):
            kept.append(path)
    return kept


def _holds(loose: Sequence[str], layers: set[str]) -> set[str]:
    """Patterns of the adapted layers that are, or lie in, one of these modules."""
    places = {pattern_of(path) for path in loose}
    return {
        layer
        for layer in layers
        if any(layer == place or layer.startswith(f"{place}.") for place in places)
    }
