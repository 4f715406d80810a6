"""Entries of ``modules_to_save`` that a real run speaks for or against.

Pure: reads the structure at full size and the verification of the tiny model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_doctor.model.module_path import pattern_of
from lora_doctor.proposal.defaults import suffix

if TYPE_CHECKING:
    from lora_doctor.results.structure import Structure
    from lora_doctor.results.verification import Verification


def heads_in_use(names: Sequence[str], seen: Verification) -> list[str]:
    """Without those that nothing runs: what only embeds labels that are disturbed on purpose
    (PP-DocLayoutV3's ``denoising_class_embed``)."""
    not_run = {one.pattern for one in seen.observations.unused_adapters if one.why == "not-run"}
    learning = {group.pattern for group in seen.adapters if group.with_gradient}
    return [
        name
        for name in names
        if not any(path == name or path.endswith(f".{name}") for path in not_run - learning)
    ]


def names_to_save(patterns: Sequence[str], structure: Structure) -> list[str]:
    """Entries of ``modules_to_save`` for all modules of these patterns and nothing else; empty
    where there are none. PEFT compares an entry with the end of a path, in the middle of a word
    too: `norm` is `final_layer_norm`, and a path's own numbers may have to stand in it."""
    names: list[str] = []
    for pattern in patterns:
        short = suffix(pattern)
        if not short.endswith("*") and _name_only(short, patterns, structure):
            names.append(short)
            continue
        groups = [g for g in structure.groups if g.pattern == pattern and g.kind == "norm"]
        paths = [path for group in groups for path in group.examples]
        if not paths or len(paths) < sum(group.count for group in groups):
            return []  # not all of their paths are known
        for path in paths:
            parts = path.split(".")
            ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
            name = next((end for end in ends if _name_only(end, patterns, structure)), None)
            if name is None:
                return []
            names.append(name)
    return list(dict.fromkeys(names))


def entries_for(paths: Sequence[str], structure: Structure) -> list[str]:
    """Entries of ``modules_to_save`` for these modules, each as short as it can be without meaning
    another one too."""
    patterns = [pattern_of(path) for path in paths]
    entries = []
    for path, pattern in zip(paths, patterns, strict=True):
        parts = path.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts)))
        named = (end for end in ends if path == pattern and _name_only(end, patterns, structure))
        entries.append(next(named, path))
    return entries


def _name_only(name: str, patterns: Sequence[str], structure: Structure) -> bool:
    """Whether only modules of these patterns have a path that ends like this; what stands around
    a layer has one, too."""
    layers = {group.pattern for group in structure.groups if group.kind != "parameter"}
    around = {
        pattern.rsplit(".", count)[0]
        for pattern in layers
        for count in range(1, pattern.count(".") + 1)
    }
    return not any(_may_end(path, name) for path in (layers | around) - set(patterns))


def _may_end(pattern: str, name: str) -> bool:
    """Whether a path of this pattern, a number for each star, may end in ``name``."""
    *rest, first = reversed(name.split("."))
    ours = list(reversed(pattern.split(".")))
    if len(ours) <= len(rest):
        return False
    same = all(
        one == other or (one == "*" and other.isdigit())
        for one, other in zip(ours, rest, strict=False)
    )
    word = ours[len(rest)]
    return same and (first.isdigit() if word == "*" else word.endswith(first))
