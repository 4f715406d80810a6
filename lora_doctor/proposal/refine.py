"""What a real run on the tiny model says against a recipe that we proposed ourselves.

Pure: reads the structure at full size and the verification of the tiny model. Whoever names a key
himself keeps his value.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from lora_doctor.model.module_path import pattern_of
from lora_doctor.proposal.dead_layers import (
    dead_layers,
    layer_of,
    passing_dead_layers,
)
from lora_doctor.proposal.defaults import name_groups
from lora_doctor.proposal.saved_modules import entries_for, heads_in_use, names_to_save
from lora_doctor.proposal.stack_ends import at_an_end, excluding
from lora_doctor.text import quoted

if TYPE_CHECKING:
    from lora_doctor.proposal.dead_layers import (
        LayerNumbers,
    )
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.structure import Structure
    from lora_doctor.results.verification import Verification

#: Better values by key, and why, in words.
Change = tuple[dict[str, Any], list[str]]
_NOT_PASSED_ON = re.compile(r"'(?P<holder>\w+)' object has no attribute '(?P<name>\w+)'")
_NO_GRADIENT = re.compile("does not require grad")


def refined(
    asked: Recipe,
    recipe: Recipe,
    structure: Structure,
    seen: Verification,
    layer_numbers: LayerNumbers,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Better values for keys that we proposed, and why, in words; empty when there is nothing to
    better.

    ``asked``: the recipe before the proposal, ``recipe``: with it. ``seen``: the run of ``recipe``.
    ``layer_numbers``: asked only where single layers of a stack are to be left out.
    """
    if seen.gradients_counted:
        changes, reasons = _by_gradients(recipe, structure, seen, layer_numbers)
    else:
        changes, reasons = _by_failure(recipe, structure, seen)
    if _ours(asked, "modules_to_save"):
        for refine_saved in (_without_unused_heads, _with_statistics, _with_random):
            change, why = refine_saved(recipe.override(changes, "proposed"), structure, seen)
            changes |= change
            reasons += why
    return changes, tuple(reasons)


def may_refine(asked: Recipe) -> bool:
    """Whether the recipe is ours: somebody who names targets is told what is wrong with them."""
    return not asked.complete and _ours(asked, "target_modules")


def _ours(asked: Recipe, key: str) -> bool:
    return key not in asked or asked.origins.get(key) == "proposed"


def _by_gradients(
    recipe: Recipe, structure: Structure, seen: Verification, layer_numbers: LayerNumbers
) -> Change:
    """Targets that a backward reaches."""
    targets = _reached(structure, seen, layer_numbers)
    if targets is not None and targets != recipe.get("target_modules"):
        return {"target_modules": targets}, _why_left_out(seen, structure)
    return _with_input_embeddings(recipe, structure, seen)


def _by_failure(recipe: Recipe, structure: Structure, seen: Verification) -> Change:
    """Targets with which the forward runs, where it did not get as far as a backward."""
    changes, reasons = _without_non_linear(structure, seen)
    if not changes:
        changes, reasons = _without_what_is_read(recipe, structure, seen)
    if not changes:
        changes, reasons = _with_input_embeddings(recipe, structure, seen)
    return changes, reasons


def _without_non_linear(structure: Structure, seen: Verification) -> Change:
    """Targets without classes that inherit from a linear layer and put out something else, where
    that made the forward fail (DeepSeek-V4's layer in groups)."""
    readings = seen.observations.non_linear_outputs
    if seen.failure is None or seen.failure.check != "forward" or not readings:
        return {}, []
    classes = sorted({one.class_name for one in readings})
    adapted = [group for group in structure.groups if group.adapted and group.kind != "parameter"]
    forms = name_groups(structure, [group for group in adapted if group.class_name not in classes])
    if not forms:
        return {}, []
    reason = f"{', '.join(classes)} put out something else than a product; left out"
    return {"target_modules": forms[0]}, [reason]


def _without_what_is_read(recipe: Recipe, structure: Structure, seen: Verification) -> Change:
    """Targets without a class of layers of which the model's code reads what PEFT's layer of the
    same name does not have (``stride``, by which MobileNet pads before each convolution); where no
    other layer is left, the linear ones of the head, which were to be trained as a whole."""
    failure = seen.failure
    missing = _NOT_PASSED_ON.match(failure.message) if failure is not None else None
    if failure is None or missing is None or failure.type != "AttributeError":
        return {}, []
    adapted = [group for group in structure.groups if group.adapted and group.kind != "parameter"]
    read = [group for group in adapted if group.class_name == missing["holder"]]
    # The line that raised names the layers, where it does: others of the class are only called.
    names = re.findall(rf"\b(\w+)\.{missing['name']}\b", failure.traceback)
    read = [group for group in read if group.leaf in names] or read
    kept = [group for group in adapted if group not in read]
    whole = recipe.get("modules_to_save") or ()
    head = [g for g in structure.groups if g.kind == "linear" and g.pattern in whole]
    forms = name_groups(structure, kept or head) if read else []
    if not forms:
        return {}, []
    reason = (
        f"the forward reads {missing['name']} of {missing['holder']}, which PEFT's layer does not "
        "have"
    )
    changes: dict[str, Any] = {"target_modules": forms[0]}
    if not kept:
        changes["modules_to_save"] = None
        return changes, [f"{reason}: nothing but the head can carry adapters"]
    return changes, [f"{reason}; left out"]


def _with_input_embeddings(recipe: Recipe, structure: Structure, seen: Verification) -> Change:
    """Targets with the input embeddings, where no gradient comes back at all: layers that are one
    operation to autograd, as reversible ones are (Reformer), only take part where their input needs
    a gradient, and what comes from frozen embeddings needs none. Under gradient checkpointing it is
    that which cuts the gradient."""
    if recipe.get("gradient_checkpointing"):
        return {}, []
    failure = seen.failure
    none = (
        failure is not None
        and failure.check == "gradients"
        and _NO_GRADIENT.search(failure.message) is not None
    )
    # Beside a head that is trained the loss does have a gradient, and still no adapter gets one.
    ours = {group.pattern for group in structure.groups if group.adapted and group.role != "head"}
    learning = [group.pattern for group in seen.adapters if group.with_gradient]
    no_adapter_learns = seen.gradients_counted and bool(ours) and ours.isdisjoint(learning)
    if not none and not no_adapter_learns:
        return {}, []
    path, before = structure.input_embeddings, recipe.get("target_modules")
    first = [group for group in structure.groups if group.pattern == path and not group.adapted]
    if path is None or not before or before == "all-linear" or not first:
        return {}, []
    if first[0].kind != "embedding":
        return {}, []
    targets = f"{before}|{re.escape(path)}" if isinstance(before, str) else [*before, path]
    reason = (
        "its layers hand gradients on only where their input needs one: an adapter on "
        f"{path} gives them such an input"
    )
    return {"target_modules": targets}, [reason]


def _without_unused_heads(recipe: Recipe, structure: Structure, seen: Verification) -> Change:
    """Without heads that nothing runs: saved as a whole, they would be saved as they began."""
    named = list(recipe.get("modules_to_save") or ())
    kept = heads_in_use(named, seen)
    if kept == named:
        return {}, []
    reason = "heads that no forward of these batches runs are left out"
    return {"modules_to_save": kept or None}, [reason]


def _with_statistics(recipe: Recipe, structure: Structure, seen: Verification) -> Change:
    """With batch norms whose running statistics move in training: else the loaded model is not the
    one that was trained."""
    moving = seen.saving.statistics if seen.saving is not None else ()
    names = names_to_save(moving, structure)
    if not names:
        return {}, []
    before = recipe.get("modules_to_save") or ()
    reason = (
        f"the running statistics of {', '.join(moving)} move in training; saved with the adapters"
    )
    return {"modules_to_save": list(dict.fromkeys([*before, *names]))}, [reason]


def _with_random(recipe: Recipe, structure: Structure, seen: Verification) -> Change:
    """With modules that the checkpoint lacks, where the loaded model answers otherwise for them."""
    check, saving = seen.check("save-reload"), seen.saving
    if saving is None or check is None or check.status != "failed" or saving.random.others:
        return {}, []
    paths = [path for path in saving.random.modules if pattern_of(path) == path]
    if not paths or len(paths) < len(saving.random.modules) or saving.random.share > 0.5:
        return {}, []
    before = recipe.get("modules_to_save") or ()
    names = entries_for(paths, structure)
    reason = f"the checkpoint has no weights for {quoted(paths, 4)}: trained and saved as a whole"
    return {"modules_to_save": list(dict.fromkeys([*before, *names]))}, [reason]


def _why_left_out(seen: Verification, structure: Structure) -> list[str]:
    merged = sorted(_merged_into_others(seen))
    dead = dead_layers(seen.adapters, structure) is not None
    without_gradient = [
        group.pattern
        for group in seen.adapters
        if (group.with_gradient < group.count if dead else not group.with_gradient)
        and group.pattern not in merged
    ]
    reasons = []
    if without_gradient:
        reasons.append(
            f"adapters got no gradient: {quoted(without_gradient, 4)}; left out where that is so"
        )
    if merged:
        reasons.append(
            "merged into one layer, adapters change others that share its weight: "
            f"{quoted(merged, 4)}; left out"
        )
    return reasons


def _reached(
    structure: Structure, seen: Verification, layer_numbers: LayerNumbers
) -> str | list[str] | None:
    """Targets without what no backward reaches and without what cannot be merged; ``None`` when
    there is nothing of either kind.

    Some layers hand their weight to a fused kernel and are never called themselves (Mamba's
    ``dt_proj``), some layers of a stack run only with another input (cross-attention layers of a
    decoder that is used alone): PEFT adapts them, the adapters learn nothing, and only running
    tells.
    """
    unreached = {group.pattern for group in seen.adapters if not group.with_gradient}
    unreached |= _merged_into_others(seen)
    dead = dead_layers(seen.adapters, structure)
    if dead is None:
        unreached |= _partly_used_stacks(seen)
    adapted = [group for group in structure.groups if group.adapted and group.kind != "parameter"]
    reached = [group for group in adapted if group.pattern not in unreached]
    ends = _unused_ends(structure, seen, unreached) if dead is None else []
    if not reached or (len(reached) == len(adapted) and dead is None and not ends):
        return None
    if dead is not None:
        return passing_dead_layers(dead, reached, layer_numbers)
    forms = name_groups(structure, reached)
    return excluding(forms[0], ends) if forms and ends else next(iter(forms), None)


def _unused_ends(structure: Structure, seen: Verification, wholly: Collection[str]) -> list[str]:
    """Paths at full size of layers at the end of a stack that run, and lead nowhere, where others
    of their kind learn: behind the last keys and values of a prefix that is only looked back at
    (PI0), or beside the one word that a classifier reads (Longformer's local attention, whose
    gradient is zero in the last layer). In the first layer a gradient may be zero for the start
    only: what it reads begins as zeros."""
    counts = {group.pattern: group.count for group in seen.adapters}
    return [
        path
        for one in seen.observations.unused_adapters
        if one.why in ("unused", "zero") and one.pattern not in wholly
        for path in at_an_end(structure, one.pattern, one.paths, counts.get(one.pattern, 0))
        if one.why == "unused" or layer_of(path).rpartition(".")[2] != "0"
    ]


def _merged_into_others(seen: Verification) -> set[str]:
    """Patterns of adapted layers whose weight is another layer's as well, where merging failed:
    what is merged into one is merged into all (Zamba's shared blocks)."""
    merge = seen.check("merge")
    if seen.saving is None or merge is None or merge.status != "failed":
        return set()
    return {pattern_of(part.path) for part in seen.saving.tied if part.how == "adapter"}


def _partly_used_stacks(seen: Verification) -> set[str]:
    """Patterns of layers of which only some learn, in a stack of which no group learns as a whole
    (the heads behind each layer of LightGlue, of which the last one is used): which of them learn
    at full size is not known, and what the model consists of learns without them."""
    unused = {one.pattern for one in seen.observations.unused_adapters}
    stacks = {
        layer_of(group.examples_without_gradient[0]).rpartition(".")[0]
        for group in seen.adapters
        if group.pattern in unused and group.with_gradient and group.examples_without_gradient
    } - {""}
    inside = {
        stack: [g for g in seen.adapters if g.pattern.startswith(f"{stack}.")] for stack in stacks
    }
    return {
        group.pattern
        for groups in inside.values()
        for group in groups
        if group.pattern in unused and not any(g.with_gradient == g.count for g in groups)
    }
