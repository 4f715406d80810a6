"""LD204: fused expert parameters that the targets do not match."""

from __future__ import annotations

import re
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
    lora_config_fields,
    means_mlp,
    names_in,
    quoted,
    require_lora,
    suffix,
    target_entries,
    unmatched_targets,
)
from lora_doctor.rules._fused_experts import fused_experts, with_shapes

if TYPE_CHECKING:
    from lora_doctor.rule_api import ModuleGroup, Structure


class FusedExpertsNotAdapted(Rule):
    """The experts of this mixture-of-experts model are fused three-dimensional parameters, not
    linear layers, and the recipe's targets do not match them.

    ## What happens
    With `gate_proj, up_proj, down_proj` or `all-linear`, the attention is adapted and the experts,
    which are most of the model, silently stay frozen.

    ## Why
    transformers 5 stores the experts of a layer in one parameter (gpt-oss does so in 4.x too), and
    PEFT's `target_modules` matches modules only. From PEFT 0.19 on the names are converted for some
    families; lora-doctor asks the installed PEFT which.

    ## Versions
    transformers 5, and gpt-oss on 4.55 and later. `target_parameters` exists from PEFT 0.17 on.

    ## Fix
    `target_parameters` with the experts' parameters, and `lora_dropout` 0, which PEFT requires for
    parameters. Both change what the model learns and the memory it takes, so they are not applied
    by default.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD204"
    name = "fused-experts-not-adapted"
    summary = "Fused experts silently get no adapter."
    depth = "meta"
    symptoms = (Symptom(r"Target module GptOssExperts\(.* is not supported"),)
    descriptions = (
        Symptom(
            r"\bexperts?\b.{0,60}\b(?:frozen|untrained|(?:not|never) (?:adapted|trained"
            r"|updated)|without (?:adapters?|lora)|no (?:adapters?|lora))\b"
        ),
        Symptom(
            r"\b(?:lora|adapters?)\b (?:is |are |was |were )?(?:not|never) (?:applied"
            r"|attached|added|injected) (?:to|on) .{0,30}\bexperts?\b"
        ),
    )
    told_as = (
        "LoRA is not applied to the experts of a MoE model, they stay frozen.",
        "The experts are one fused parameter, no linear layer that target_modules could match.",
    )
    examples = (
        Example(
            "broken",
            "arch:gpt_oss",
            {"target_modules": "all-linear", "lora_dropout": 0.0},
            requires={"transformers": ">=4.55", "peft": ">=0.17"},
            why="attention only; every expert stays frozen",
        ),
        Example(
            "healthy",
            "arch:qwen3_moe",
            {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.05},
            requires={"transformers": ">=4.53"},
            why="only the attention is asked for",
        ),
        Example(
            "healthy",
            "arch:llama4_text",
            {
                "target_modules": [
                    "q_proj", "k_proj", "v_proj", "o_proj", "shared_expert.gate_proj",
                    "shared_expert.up_proj", "shared_expert.down_proj",
                ]
            },
            requires={"transformers": ">=5"},
            depth="meta",
            why="the expert that every token goes through is asked for by name",
        ),
        Example("healthy", "arch:mixtral", {"target_modules": ["q_proj", "v_proj"]}),
        Example(
            "healthy",
            "arch:qwen3_moe",
            {"target_modules": ["q_proj", "v_proj", "gate"]},
            requires={"transformers": ">=5", "peft": ">=0.19"},
            depth="meta",
            why="gate is the router",
        ),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        structure, recipe = case.structure, case.recipe
        require_lora(recipe)
        if not structure.injection.ok or not _means_experts(case.written, structure):
            return
        experts = [group for group in fused_experts(structure) if not group.adapted]
        if not experts:
            return
        adapted = sorted({group.leaf for group in structure.groups if group.adapted})
        left = sum(group.parameters for group in experts)
        share = left / max(structure.total_parameters, 1)
        # What we proposed ourselves is the most that this PEFT can do: told, but no reason to stop.
        proposed = case.written.origins.get("target_modules") == "proposed"
        yield self.finding(
            "info" if proposed else "warning",
            f"The experts of {structure.model_class} are fused parameters, which "
            f"target_modules does not match: {share:.0%} of the model gets no adapter, only "
            f"{quoted(adapted, 6)} are adapted.",
            location=Location("module", experts[0].pattern),
            evidence=(
                Measurement(
                    "fused experts, not adapted", with_shapes(experts), structure.model_class
                ),
                Measurement(
                    "their share",
                    f"{left:,} of {structure.total_parameters:,} parameters",
                    "counted on the meta device",
                ),
                Measurement(
                    "target_parameters in the installed PEFT",
                    "supported" if _supported() else "not supported",
                    "its LoraConfig",
                ),
            ),
            proof=Proof(
                "measured",
                (
                    "PEFT injected the adapters into the full-size model on "
                    "the meta device, and they were counted"
                ),
            ),
            fixes=_target_parameters(recipe, experts),
            explains=("attaches",),
        )


def _means_experts(written: Recipe, structure: Structure) -> bool:
    """Whether the targets speak of the MLP: a recipe for the attention alone is not reported, and
    so is one whose names of the MLP are those of a shared expert or a dense layer by their path
    (``shared_expert.down_proj``)."""
    entries = target_entries(written)
    if "all-linear" in entries:
        return True
    unmatched = set(unmatched_targets(structure))
    routers = _routers(structure)
    return any(
        means_mlp(name) and name not in routers
        for entry in entries
        if entry in unmatched or not _says_where(entry)
        for name in names_in(entry)
    )


def _routers(structure: Structure) -> set[str]:
    """Names that only routers have here: ``gate`` of a mixture is no part of its experts."""
    others = {group.leaf for group in structure.groups if group.role in ("mlp", "experts")}
    return {group.leaf for group in structure.groups if group.role == "router"} - others


def _says_where(entry: str) -> bool:
    """Whether an entry says in which module its layer is, other than the routed experts: a
    recipe that does so has chosen."""
    path = entry.rpartition(".")[0]
    return (
        bool(path) and re.fullmatch(r"[\w.]+", entry) is not None and not path.endswith("experts")
    )


def _supported() -> bool:
    return "target_parameters" in (lora_config_fields() or ())


def _target_parameters(recipe: Recipe, experts: list[ModuleGroup]) -> tuple[Fix, ...]:
    if not _supported():
        return (
            Fix("The installed PEFT cannot adapt parameters: upgrade to 0.17 or later.", "manual"),
        )
    names = sorted({suffix(group.pattern) for group in experts})
    present = [name for name in recipe.get("target_parameters") or () if name not in names]
    edits = [Edit("target_parameters", present + names)]
    if recipe.get("lora_dropout"):
        edits.append(Edit("lora_dropout", 0.0))
    return (
        Fix(f"Adapt the experts as well: target_parameters {', '.join(names)}.", "unsafe",
            tuple(edits)),
    )  # fmt: skip
