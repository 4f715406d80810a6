"""Layers of a stack that run and learn nothing, and a name for all others at full size.

Pure: reads the structure at full size and the adapters of the tiny model that was run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_doctor.results.structure import ModuleGroup, Structure
    from lora_doctor.results.verification import AdapterGroup

#: Pattern of a group of layers, to the numbers that these have in their stack at full size.
LayerNumbers = Callable[[Sequence[str]], Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class DeadLayers:
    """Layers of a stack (``model.layers``) in which nothing gets a gradient, and how they can be
    told at full size: by modules that only they have (``marks``), by their own ``numbers`` where
    the stack is no smaller in the tiny model, or as the ``last`` so many."""

    stack: str
    marks: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    last: int = 0


def dead_layers(groups: Sequence[AdapterGroup], structure: Structure) -> DeadLayers | None:
    """Layers in which no adapter got a gradient although layers beside them did; ``None`` unless
    this explains every adapter that got none in a group of which others did, and the layers can be
    told at full size."""
    partly = [group for group in groups if 0 < group.with_gradient < group.count]
    layers = _layers_without_gradient(partly)
    stack = _only_stack(layers)
    if not stack or _some_are_alive(stack, groups, partly):
        return None
    marks = _only_in(layers, groups)
    if marks:
        return DeadLayers(stack, marks=marks)
    numbers = tuple(sorted(int(layer.rpartition(".")[2]) for layer in layers))
    full = {group.pattern: group.count for group in structure.groups}
    if all(full.get(group.pattern) == group.count for group in partly):
        return DeadLayers(stack, numbers=numbers)
    return DeadLayers(stack, last=len(layers)) if _are_last(stack, numbers, partly) else None


def _layers_without_gradient(partly: Sequence[AdapterGroup]) -> set[str]:
    """Paths of the layers (``model.layers.3``) that the adapters without a gradient are in; empty
    where not all of these are known."""
    paths = {path for group in partly for path in group.examples_without_gradient}
    if len(paths) != sum(group.count - group.with_gradient for group in partly):
        return set()
    return {layer_of(path) for path in paths}


def _only_stack(layers: set[str]) -> str:
    """The stack that all these layers are of; empty where there is none, or more than one."""
    stacks = {layer.rpartition(".")[0] for layer in layers}
    return next(iter(stacks)) if len(stacks) == 1 else ""


def _some_are_alive(
    stack: str, groups: Sequence[AdapterGroup], partly: Sequence[AdapterGroup]
) -> bool:
    """Whether something learns in a layer that seems dead: a group that is reached in more layers
    than live ones has a member in a dead one."""
    live = max(group.with_gradient for group in partly)
    return any(
        group.with_gradient == group.count > live
        for group in groups
        if group.pattern.startswith(f"{stack}.")
    )


def _only_in(layers: set[str], groups: Sequence[AdapterGroup]) -> tuple[str, ...]:
    """Patterns of adapters that never learn and stand in these layers, in each one and in no
    other."""
    return tuple(
        group.pattern
        for group in groups
        if not group.with_gradient
        and len(group.examples_without_gradient) == group.count
        and {layer_of(path) for path in group.examples_without_gradient} == layers
    )


def _are_last(stack: str, numbers: tuple[int, ...], partly: Sequence[AdapterGroup]) -> bool:
    """Whether these are the last layers of a stack whose layers are all alike: the loss is made of
    what earlier ones give out (BEiT's ``out_indices``), and the tiny model has as many behind."""
    counts = {group.count for group in partly}
    return (
        len(counts) == 1
        and numbers == tuple(range(max(counts) - len(numbers), max(counts)))
        and all(group.pattern.startswith(f"{stack}.*.") for group in partly)
        and all(group.pattern.count("*") == 1 for group in partly)
        and all(group.count - group.with_gradient == len(numbers) for group in partly)
    )


def layer_of(path: str) -> str:
    """The path up to its first number; empty without one."""
    found = re.match(r"(.*?\.\d+)(?:\.|$)", path)
    return found[1] if found else ""


def passing_dead_layers(
    dead: DeadLayers, groups: Sequence[ModuleGroup], layer_numbers: LayerNumbers
) -> str | None:
    """One regular expression for these groups that passes the dead layers by."""
    layers = list(dead.numbers)
    if not layers:
        inside = [group.pattern for group in groups if group.pattern.startswith(f"{dead.stack}.*.")]
        by_pattern = layer_numbers(dead.marks or inside)
        layers = sorted({number for found in by_pattern.values() for number in found})
        layers = layers[-dead.last :]
    if not layers:
        return None
    stack = re.escape(dead.stack)
    barred = "|".join(rf"{stack}\.{number}\." for number in layers)
    exact = dict.fromkeys(re.escape(item.pattern).replace(r"\*", r"\d+") for item in groups)
    return f"(?!{barred})(?:{'|'.join(exact)})"
