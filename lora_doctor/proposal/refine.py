"""What a real run on the tiny model says against a recipe that we proposed ourselves.

Pure: reads the structure at full size and the verification of the tiny model. Whoever names a key
himself keeps his value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.model.modules import pattern_of
from lora_doctor.proposal.defaults import name_groups, suffix
from lora_doctor.proposal.stack_ends import at_an_end, passing_by
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.structure import ModuleGroup, Structure
from lora_doctor.results.verification import AdapterGroup, Verification
from lora_doctor.text import quoted

#: Pattern of a group of layers, to the numbers that these have in their stack at full size.
Numbers = Callable[[Sequence[str]], Mapping[str, Sequence[int]]]
_NOT_PASSED_ON = re.compile(r"'(?P<holder>\w+)' object has no attribute '(?P<name>\w+)'")
_NO_GRADIENT = re.compile("does not require grad")


@dataclass(frozen=True)
class _Dead:
    """Layers of a stack (``model.layers``) in which nothing gets a gradient, and how they can be
    told at full size: by modules that only they have (``marks``), by their own ``numbers`` where
    the stack is no smaller in the tiny model, or as the ``last`` so many."""

    stack: str
    marks: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    last: int = 0


def refined(
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
            reasons += _why_left_out(seen, structure)
        elif not recipe.get("gradient_checkpointing"):
            changes, reasons = _with_input_embeddings(recipe, structure, seen)
    else:
        changes, reasons = _without_misfits(structure, seen)
        if not changes:
            changes, reasons = _without_what_is_read(recipe, structure, seen)
        if not changes and not recipe.get("gradient_checkpointing"):
            changes, reasons = _with_input_embeddings(recipe, structure, seen)
    if _ours(asked, "modules_to_save") and recipe.get("modules_to_save"):
        kept = _heads_in_use(recipe.get("modules_to_save"), seen)
        if kept != recipe.get("modules_to_save"):
            changes["modules_to_save"] = kept or None
            reasons.append("heads that no forward of these batches runs are left out")
    if _ours(asked, "modules_to_save") and seen.saving is not None and seen.saving.statistics:
        named = _names_to_save(seen.saving.statistics, structure)
        if named:
            before = changes.get("modules_to_save", recipe.get("modules_to_save")) or ()
            changes["modules_to_save"] = [*before, *(name for name in named if name not in before)]
            reasons.append(
                f"the running statistics of {', '.join(seen.saving.statistics)} move in training; "
                "saved with the adapters"
            )
    return changes, tuple(reasons)


def _heads_in_use(names: Sequence[str], seen: Verification) -> list[str]:
    """Without those that nothing runs: what only embeds labels that are disturbed on purpose
    (PP-DocLayoutV3's ``denoising_class_embed``)."""
    idle = {one.pattern for one in seen.observations.idle if one.why == "not-run"}
    learning = {group.pattern for group in seen.adapters if group.with_gradient}
    return [
        name
        for name in names
        if not any(path == name or path.endswith(f".{name}") for path in idle - learning)
    ]


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


def _without_what_is_read(
    recipe: Recipe, structure: Structure, seen: Verification
) -> tuple[dict[str, Any], list[str]]:
    """Targets without a class of layers of which the model's code reads what PEFT's layer of the
    same name does not have (``stride``, by which MobileNet pads before each convolution); where no
    other layer is left, the linear ones of the head, which were to be trained as a whole."""
    failure = seen.failure
    told = _NOT_PASSED_ON.match(failure.message) if failure is not None else None
    if failure is None or told is None or failure.type != "AttributeError":
        return {}, []
    adapted = [group for group in structure.groups if group.adapted and group.kind != "parameter"]
    read = [group for group in adapted if group.class_name == told["holder"]]
    # The line that raised names the layers, where it does: others of the class are only called.
    names = re.findall(rf"\b(\w+)\.{told['name']}\b", failure.traceback)
    read = [group for group in read if group.leaf in names] or read
    kept = [group for group in adapted if group not in read]
    whole = recipe.get("modules_to_save") or ()
    head = [g for g in structure.groups if g.kind == "linear" and g.pattern in whole]
    forms = name_groups(structure, kept or head) if read else []
    if not forms:
        return {}, []
    said = f"the forward reads {told['name']} of {told['holder']}, which PEFT's layer does not have"
    changes: dict[str, Any] = {"target_modules": forms[0]}
    if not kept:
        changes["modules_to_save"] = None
        return changes, [f"{said}: nothing but the head can carry adapters"]
    return changes, [f"{said}; left out"]


def _with_input_embeddings(
    recipe: Recipe, structure: Structure, seen: Verification
) -> tuple[dict[str, Any], list[str]]:
    """Targets with the input embeddings, where no gradient comes back at all: layers that are one
    operation to autograd, as reversible ones are (Reformer), only take part where their input needs
    a gradient, and what comes from frozen embeddings needs none."""
    failure = seen.failure
    none = (
        failure is not None
        and failure.check == "gradients"
        and _NO_GRADIENT.search(failure.message) is not None
    )
    # Beside a head that is trained the loss does have a gradient, and still no adapter gets one.
    ours = {group.pattern for group in structure.groups if group.adapted and group.role != "head"}
    learning = [group.pattern for group in seen.adapters if group.with_gradient]
    idle = seen.gradients_counted and bool(ours) and ours.isdisjoint(learning)
    if not none and not idle:
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


def _why_left_out(seen: Verification, structure: Structure) -> list[str]:
    merged = sorted(_merged_into_others(seen))
    dead = _dead_layers(seen.adapters, structure) is not None
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


def may_refine(asked: Recipe) -> bool:
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
    dead = _dead_layers(seen.adapters, structure)
    if dead is None:
        unreached |= _apart_and_idle(seen)
    adapted = [group for group in structure.groups if group.adapted and group.kind != "parameter"]
    reached = [group for group in adapted if group.pattern not in unreached]
    ends = _unused_ends(structure, seen, unreached) if dead is None else []
    if not reached or (len(reached) == len(adapted) and dead is None and not ends):
        return None
    if dead is not None:
        return _without(dead, reached, numbers)
    forms = name_groups(structure, reached)
    return passing_by(forms[0], ends) if forms and ends else next(iter(forms), None)


def _unused_ends(structure: Structure, seen: Verification, wholly: Collection[str]) -> list[str]:
    """Paths at full size of layers at the end of a stack that run, and lead nowhere, where others
    of their kind learn: behind the last keys and values of a prefix that is only looked back at
    (PI0), or beside the one word that a classifier reads (Longformer's local attention, whose
    gradient is zero in the last layer). In the first layer a gradient may be zero for the start
    only: what it reads begins as zeros."""
    counts = {group.pattern: group.count for group in seen.adapters}
    return [
        path
        for one in seen.observations.idle
        if one.why in ("unused", "zero") and one.pattern not in wholly
        for path in at_an_end(structure, one.pattern, one.paths, counts.get(one.pattern, 0))
        if one.why == "unused" or _layer(path).rpartition(".")[2] != "0"
    ]


def _merged_into_others(seen: Verification) -> set[str]:
    """Patterns of adapted layers whose weight is another layer's as well, where merging failed:
    what is merged into one is merged into all (Zamba's shared blocks)."""
    merge = seen.check("merge")
    if seen.saving is None or merge is None or merge.status != "failed":
        return set()
    return {pattern_of(part.path) for part in seen.saving.tied if part.how == "adapter"}


def _apart_and_idle(seen: Verification) -> set[str]:
    """Patterns of layers of which only some learn, in a stack of which no group learns as a whole
    (the heads behind each layer of LightGlue, of which the last one is used): which of them learn
    at full size is not known, and what the model consists of learns without them."""
    idle = {one.pattern for one in seen.observations.idle}
    stacks = {
        _layer(group.examples_without_gradient[0]).rpartition(".")[0]
        for group in seen.adapters
        if group.pattern in idle and group.with_gradient and group.examples_without_gradient
    } - {""}
    inside = {
        stack: [g for g in seen.adapters if g.pattern.startswith(f"{stack}.")] for stack in stacks
    }
    return {
        group.pattern
        for groups in inside.values()
        for group in groups
        if group.pattern in idle and not any(g.with_gradient == g.count for g in groups)
    }


def _dead_layers(groups: Sequence[AdapterGroup], structure: Structure) -> _Dead | None:
    """Layers in which no adapter got a gradient although layers beside them did; ``None`` unless
    this explains every adapter that got none in a group of which others did, and the layers can be
    told at full size."""
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
    if alive:
        return None
    if marks:
        return _Dead(stack, marks)
    numbers = tuple(sorted(int(head.rpartition(".")[2]) for head in heads))
    full = {group.pattern: group.count for group in structure.groups}
    if all(full.get(group.pattern) == group.count for group in partly):
        return _Dead(stack, (), numbers)
    return _Dead(stack, (), last=len(heads)) if _are_last(stack, numbers, partly) else None


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


def _layer(path: str) -> str:
    """The path up to its first number; empty without one."""
    found = re.match(r"(.*?\.\d+)(?:\.|$)", path)
    return found[1] if found else ""


def _without(dead: _Dead, groups: Sequence[ModuleGroup], numbers: Numbers) -> str | None:
    """One regular expression for these groups that passes the dead layers by."""
    layers = list(dead.numbers)
    if not layers:
        inside = [group.pattern for group in groups if group.pattern.startswith(f"{dead.stack}.*.")]
        told = numbers(dead.marks or inside)
        layers = sorted({number for found in told.values() for number in found})[-dead.last :]
    if not layers:
        return None
    stack = re.escape(dead.stack)
    barred = "|".join(rf"{stack}\.{number}\." for number in layers)
    exact = dict.fromkeys(re.escape(item.pattern).replace(r"\*", r"\d+") for item in groups)
    return f"(?!{barred})(?:{'|'.join(exact)})"


def _names_to_save(patterns: Sequence[str], structure: Structure) -> list[str]:
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
