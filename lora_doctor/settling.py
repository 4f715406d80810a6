"""What a real run on the tiny model says against a recipe that we proposed ourselves.

Pure: reads the structure at full size and the verification of the tiny model. Whoever names a key
himself keeps his value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.evidence.modules import pattern_of
from lora_doctor.evidence.propose import name_groups, suffix
from lora_doctor.evidence.structure import ModuleGroup, Structure
from lora_doctor.recipe import Recipe
from lora_doctor.targets import quoted
from lora_doctor.verification import AdapterGroup, Verification

#: Pattern of a group of layers, to the numbers that these have in their stack at full size.
Numbers = Callable[[Sequence[str]], Mapping[str, Sequence[int]]]
_NO_GRADIENT = re.compile("does not require grad")


@dataclass(frozen=True)
class _Dead:
    """Layers of a stack (``model.layers``) in which nothing gets a gradient, and the modules by
    which they can be told from the others."""

    stack: str
    marks: tuple[str, ...]


def settled(
    asked: Recipe, recipe: Recipe, structure: Structure, seen: Verification, numbers: Numbers
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Better values for keys that we proposed, and why, in words; empty when there is nothing to
    better.

    ``asked``: the recipe before the proposal, ``recipe``: with it. ``seen``: the run of ``recipe``.
    ``numbers``: asked only where single layers of a stack are to be left out.
    """
    changes: dict[str, Any] = {}
    reasons: list[str] = []
    if seen.gradients_counted:
        targets = _reached(structure, seen, numbers)
        if targets is not None and targets != recipe.get("target_modules"):
            changes["target_modules"] = targets
            reasons += _why_left_out(seen)
    else:
        changes, reasons = _without_misfits(structure, seen)
        if not changes and not recipe.get("gradient_checkpointing"):
            changes, reasons = _with_input_embeddings(recipe, structure, seen)
    if _ours(asked, "modules_to_save") and seen.saving is not None and seen.saving.statistics:
        named = [name for path in seen.saving.statistics for name in _endings(path, structure)]
        named = list(dict.fromkeys(named))
        if _name_only(named, seen.saving.statistics, structure):
            before = recipe.get("modules_to_save") or ()
            changes["modules_to_save"] = [*before, *(name for name in named if name not in before)]
            reasons.append(
                f"the running statistics of {', '.join(seen.saving.statistics)} move in training; "
                "saved with the adapters"
            )
    return changes, tuple(reasons)


def _without_misfits(structure: Structure, seen: Verification) -> tuple[dict[str, Any], list[str]]:
    """Targets without classes that inherit from a linear layer and put out something else, where
    that made the forward fail (DeepSeek-V4's layer in groups)."""
    misfits = seen.observations.misfits
    if seen.failure is None or seen.failure.check != "forward" or not misfits:
        return {}, []
    classes = sorted({one.class_name for one in misfits})
    adapted = [group for group in structure.groups if group.adapted and group.kind != "parameter"]
    forms = name_groups(structure, [group for group in adapted if group.class_name not in classes])
    if not forms:
        return {}, []
    said = f"{', '.join(classes)} put out something else than a product; left out"
    return {"target_modules": forms[0]}, [said]


def _with_input_embeddings(
    recipe: Recipe, structure: Structure, seen: Verification
) -> tuple[dict[str, Any], list[str]]:
    """Targets with the input embeddings, where no gradient comes back at all: layers that are one
    operation to autograd, as reversible ones are (Reformer), only take part where their input needs
    a gradient, and what comes from frozen embeddings needs none."""
    failure = seen.failure
    if failure is None or failure.check != "gradients" or not _NO_GRADIENT.search(failure.message):
        return {}, []
    path, before = structure.input_embeddings, recipe.get("target_modules")
    first = [group for group in structure.groups if group.pattern == path and not group.adapted]
    if path is None or not before or before == "all-linear" or not first:
        return {}, []
    if first[0].kind != "embedding":
        return {}, []
    targets = f"{before}|{re.escape(path)}" if isinstance(before, str) else [*before, path]
    said = (
        "its layers hand gradients on only where their input needs one: an adapter on "
        f"{path} gives them such an input"
    )
    return {"target_modules": targets}, [said]


def _why_left_out(seen: Verification) -> list[str]:
    merged = sorted(_merged_into_others(seen))
    dead = _dead_layers(seen.adapters) is not None
    idle = [
        group.pattern
        for group in seen.adapters
        if (group.with_gradient < group.count if dead else not group.with_gradient)
        and group.pattern not in merged
    ]
    reasons = []
    if idle:
        reasons.append(f"adapters got no gradient: {quoted(idle, 4)}; left out where that is so")
    if merged:
        reasons.append(
            "merged into one layer, adapters change others that share its weight: "
            f"{quoted(merged, 4)}; left out"
        )
    return reasons


def may_settle(asked: Recipe) -> bool:
    """Whether the recipe is ours: somebody who names targets is told what is wrong with them."""
    return not asked.complete and _ours(asked, "target_modules")


def _ours(asked: Recipe, key: str) -> bool:
    return key not in asked or asked.origins.get(key) == "proposed"


def _reached(structure: Structure, seen: Verification, numbers: Numbers) -> str | list[str] | None:
    """Targets without what no backward reaches and without what cannot be merged; ``None`` when
    there is nothing of either kind.

    Some layers hand their weight to a fused kernel and are never called themselves (Mamba's
    ``dt_proj``), some layers of a stack run only with another input (cross-attention layers of a
    decoder that is used alone): PEFT adapts them, the adapters learn nothing, and only running
    tells.
    """
    unreached = {group.pattern for group in seen.adapters if not group.with_gradient}
    unreached |= _merged_into_others(seen)
    adapted = [group for group in structure.groups if group.adapted and group.kind != "parameter"]
    reached = [group for group in adapted if group.pattern not in unreached]
    dead = _dead_layers(seen.adapters)
    if not reached or (len(reached) == len(adapted) and dead is None):
        return None
    if dead is not None:
        return _without(dead, reached, numbers)
    forms = name_groups(structure, reached)
    return forms[0] if forms else None


def _merged_into_others(seen: Verification) -> set[str]:
    """Patterns of adapted layers whose weight is another layer's as well, where merging failed:
    what is merged into one is merged into all (Zamba's shared blocks)."""
    merge = seen.check("merge")
    if seen.saving is None or merge is None or merge.status != "failed":
        return set()
    return {pattern_of(part.path) for part in seen.saving.tied if part.how == "adapter"}


def _dead_layers(groups: Sequence[AdapterGroup]) -> _Dead | None:
    """Layers in which no adapter got a gradient although layers beside them did; ``None`` unless
    this explains every adapter that got none in a group of which others did."""
    partly = [group for group in groups if 0 < group.with_gradient < group.count]
    never = [group for group in groups if not group.with_gradient]
    paths = {path for group in partly for path in group.examples_without_gradient}
    heads = {_layer(path) for path in paths}
    if not paths or len(paths) != sum(group.count - group.with_gradient for group in partly):
        return None
    stacks = {head.rpartition(".")[0] for head in heads}
    if len(stacks) != 1 or "" in stacks:
        return None
    marks = tuple(
        group.pattern
        for group in never
        if len(group.examples_without_gradient) == group.count
        and {_layer(path) for path in group.examples_without_gradient} == heads
    )
    # A group that is reached in more layers than live ones has a member in a dead one.
    live = max(group.with_gradient for group in partly)
    stack = next(iter(stacks))
    alive = any(
        group.with_gradient == group.count > live
        for group in groups
        if group.pattern.startswith(f"{stack}.")
    )
    return _Dead(stack, marks) if marks and not alive else None


def _layer(path: str) -> str:
    """The path up to its first number; empty without one."""
    found = re.match(r"(.*?\.\d+)(?:\.|$)", path)
    return found[1] if found else ""


def _without(dead: _Dead, groups: Sequence[ModuleGroup], numbers: Numbers) -> str | None:
    """One regular expression for these groups that passes the dead layers by."""
    at = numbers(dead.marks)
    layers = sorted({number for mark in dead.marks for number in at.get(mark, ())})
    if not layers:
        return None
    stack = re.escape(dead.stack)
    barred = "|".join(rf"{stack}\.{number}\." for number in layers)
    exact = dict.fromkeys(re.escape(item.pattern).replace(r"\*", r"\d+") for item in groups)
    return f"(?!{barred})(?:{'|'.join(exact)})"


def _endings(pattern: str, structure: Structure) -> list[str]:
    """The ends of paths that name a group; a module that is itself one of a numbered sequence goes
    by its own number."""
    name = suffix(pattern)
    if not name.endswith("*"):
        return [name]
    length = name.count(".") + 1
    paths = [path for group in structure.groups if group.pattern == pattern
             for path in group.examples]  # fmt: skip
    return [".".join(path.split(".")[-length:]) for path in paths]


def _name_only(names: Sequence[str], patterns: Sequence[str], structure: Structure) -> bool:
    """Whether these entries of ``modules_to_save``, which PEFT compares with the end of a path,
    name nothing else."""
    return all(
        group.pattern in patterns
        for group in structure.groups
        for name in names
        if group.pattern.endswith(name) or any(path.endswith(name) for path in group.examples)
    )
