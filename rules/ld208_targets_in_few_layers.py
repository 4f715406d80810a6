"""LD208: the targets exist in only a few layers of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Recipe,
    Rule,
    Symptom,
    offered_layers,
    quoted,
    require_lora,
    target_entries,
    unmatched_targets,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import ModuleGroup, Structure


class TargetsInFewLayers(Rule):
    """Every entry of `target_modules` matches, but most layers of the language tower use other
    modules for token mixing (a recurrence or linear attention), which get no adapter.

    ## What happens
    Training runs and the loss falls. With `[q_proj, v_proj]` RecurrentGemma gets adapters in 8 of
    26 layers, Qwen3-Next in 12 of 48: in the other layers the token mixing is not adapted.

    ## Why
    In hybrid models the names exist in one layer out of several: the others have a recurrence or
    linear attention, whose projections have other names. PEFT raises only when *nothing* matches.

    Which layers have adapters is measured and certain. Whether the other layers were left out on
    purpose is not: published recipes for hybrid models do so. It is a warning if most layers get no
    adapter at all, and an info if adapters on other parts of these layers (the MLP) are trained.

    ## Versions
    All versions of PEFT.

    ## Fix
    The names of the other layers' projections, in addition to those of the recipe. More adapters
    are trained than before, so it is not applied by default. A recipe that chooses layers itself,
    with `layers_to_transform`, a regular expression or `all-linear`, is not reported.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD208"
    name = "targets-in-few-layers"
    summary = "The targets exist in only a few layers; the others use other names."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\b(?:hybrid|mamba|linear attention|deltanet|recurrent)\b.{0,80}\b(?:no|without) "
            r"(?:lora|adapters?)\b"
        ),
    )
    told_as = ("Only a few layers get LoRA, the others have none.",)
    examples = (
        Example(
            "broken",
            "arch:recurrent_gemma",
            {"target_modules": ["q_proj", "v_proj"]},
            # Up to 4.57 it keeps a cache in training, and v_proj learn nothing: LD206 tells of it.
            requires={"transformers": ">=5"},
            why="attention in one layer of three, a recurrence in the others",
        ),
        Example(
            "healthy",
            "arch:recurrent_gemma",
            {
                "target_modules": [
                    "q_proj", "k_proj", "v_proj", "o_proj", "linear_x", "linear_y", "linear_out",
                ]
            },
            requires={"transformers": ">=4.40"},
            why="both kinds of layer are named",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
            why="few layers, as the recipe says",
        ),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        structure, recipe = case.structure, case.recipe
        require_lora(recipe)
        if not structure.injection.ok or unmatched_targets(structure):
            return  # a name that matches nothing is the cause then, and LD202 tells of it
        if not _lists_names(case.written):
            return
        with_adapter, layers, left = _token_mixing(structure)
        if not left:
            return
        reached = _layers_with_adapter(structure)
        bare = reached * 2 < layers
        yield self.finding(
            "warning" if bare else "info",
            f"{_names(structure)} exist in {with_adapter} of {layers} layers of "
            f"{structure.model_class}; the other layers have {quoted(left, 6)} instead, which "
            + ("get no adapter." if bare else "get no adapter; other parts of these layers do."),
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement(
                    "layers with adapted attention or recurrence",
                    f"{with_adapter} of {layers}",
                    "installed PEFT, meta device",
                ),
                Measurement(
                    "layers with any adapter",
                    f"at least {reached} of {layers}",
                    "installed PEFT, meta device",
                ),
                Measurement(
                    "not adapted", quoted(left), f"{structure.model_class}, language tower"
                ),
            ),
            proof=Proof(
                "measured",
                (
                    "PEFT injected the adapters into the full-size model on "
                    "the meta device, and they were counted"
                ),
            ),
            fixes=(_fix(case, left),),
        )


def _fix(case: Case, left: list[str]) -> Fix:
    """The names of the other layers beside those of the recipe, as far as PEFT adapts them: it
    refuses a layer whose weight a kernel reads."""
    before = target_entries(case.recipe)
    taken = left if _accepts(case, [*before, *left]) else [
        name for name in left if _accepts(case, [*before, name])
    ]  # fmt: skip
    if not taken:
        return Fix("Adapt the other layers by names that this PEFT accepts.", "manual")
    refused = [name for name in left if name not in taken]
    note = f" (the installed PEFT refuses {quoted(refused)})" if refused else ""
    return Fix(
        f"Also adapt the other layers: {', '.join(taken)}{note}.",
        "unsafe",
        (Edit("target_modules", [*before, *taken]),),
    )


def _accepts(case: Case, targets: list[str]) -> bool:
    """Whether PEFT injects adapters into these on the full-size model."""
    recipe = case.recipe_in_full().edit((Edit("target_modules", targets),))
    return case.again(recipe, case.patches).structure.injection.ok


def _lists_names(written: Recipe) -> bool:
    """Whether the user lists names and no layers: whoever wrote ``layers_to_transform``, a
    regular expression or ``all-linear`` has chosen with the paths in view."""
    if any(written.get(key) is not None for key in ("layers_to_transform", "layers_pattern")):
        return False
    return not isinstance(written.get("target_modules"), str)


def _in_layers(structure: Structure) -> list[ModuleGroup]:
    """What a layer of the language tower has once: norms, layers, fused experts."""
    towers = {group.tower for group in offered_layers(structure)}
    return [
        group
        for group in structure.groups
        if group.tower in towers and group.pattern.count("*") == 1
    ]


def _layers_with_adapter(structure: Structure) -> int:
    """In how many layers anything is adapted, at the least: kinds of layers that overlap are not
    added up."""
    return max((group.adapted for group in _in_layers(structure)), default=0)


def _names(structure: Structure) -> str:
    """Names of the adapted layers that mix tokens."""
    mixers = (g for g in offered_layers(structure) if g.role not in ("mlp", "experts"))
    return quoted(sorted({group.leaf for group in mixers if group.adapted}), 6)


def _token_mixing(structure: Structure) -> tuple[int, int, list[str]]:
    """In how many layers what mixes tokens has an adapter, of how many; and the names that it has
    in the others, where these are most of the tower."""
    offered = [group for group in offered_layers(structure) if group.pattern.count("*") == 1]
    layers = max((group.count for group in _in_layers(structure)), default=0)
    # What mixes tokens differs from layer to layer; the MLP beside it hides that.
    mixers = [group for group in offered if group.role not in ("mlp", "experts")]
    with_adapter = max((group.adapted for group in mixers), default=0)
    if not with_adapter or with_adapter * 2 >= layers:
        return with_adapter, layers, []
    others = [group for group in mixers if not group.adapted and group.count >= with_adapter]
    return with_adapter, layers, sorted({group.leaf for group in others})
