"""LD212: PEFT turns targets into parameters of the experts, and skips linear layers so called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    names_in,
    offered_layers,
    quoted,
    require_lora,
)
from lora_doctor.rules._fused_experts import fused_experts

if TYPE_CHECKING:
    from lora_doctor.rule_api import ModuleGroup, Structure


class ConversionSkipsLinearLayers(Rule):
    """PEFT takes target names for the fused experts of this mixture, and the linear layers of the
    same names, in dense blocks and shared experts, get no adapter.

    ## What happens
    Training runs with adapters on the experts. `gate_proj, up_proj, down_proj` of the dense blocks
    and the shared experts, which every token passes, stay frozen, without a word.

    ## Why
    transformers 5 stores the experts of a layer in one parameter. PEFT from 0.19 on turns such
    names into `target_parameters` for some families; lora-doctor asks the installed PEFT which. The
    names that it converts no longer stand for the linear layers of dense blocks and shared experts.

    ## Versions
    transformers 5 with PEFT 0.19 and later.

    ## Fix
    None by an edit: this PEFT adapts one or the other under these names.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD212"
    name = "conversion-skips-linear-layers"
    summary = "PEFT takes names for fused experts and skips linear layers of the same names."
    depth = "meta"
    examples = (
        Example(
            "broken",
            "arch:glm4_moe",
            {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"], "lora_dropout": 0},
            requires={"transformers": ">=5", "peft": ">=0.21"},
            depth="meta",
            why="PEFT converts the experts, and drops the shared expert and the dense block",
        ),
        Example(
            "healthy",
            "arch:qwen3_moe",
            {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"], "lora_dropout": 0},
            requires={"transformers": ">=5", "peft": ">=0.21"},
            depth="meta",
            why="every layer so called is an expert",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
            depth="meta",
            why="no experts, nothing is converted",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure, recipe = case.structure, case.recipe
        require_lora(recipe)
        if not structure.injection.ok or not fused_experts(structure):
            return
        skipped = _skipped(structure)
        if not skipped:
            return
        names = sorted({group.leaf for group in skipped})
        patterns = quoted([group.pattern for group in skipped], 3)
        yield self.finding(
            "info" if case.written.origins.get("target_modules") == "proposed" else "warning",
            f"PEFT turns {quoted(names)} into parameters of the experts in {structure.model_class} "
            f"and with that leaves out {sum(group.count for group in skipped)} linear layers of "
            f"the same names ({patterns}).",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement("converted by PEFT", quoted(map(str, structure.injection.converted)),
                        "installed PEFT"),
                Measurement("linear layers of these names without adapter",
                        quoted([f"{group.count} x {group.pattern}" for group in skipped], 6),
                        structure.model_class),
            ),
            proof=Proof("measured", ("PEFT injected the adapters into the full-size model on "
                                    "the meta device, and they were counted")),
            fixes=(
                Fix(
                    "This PEFT adapts either these layers or the experts under these names; to "
                    "train the attention alone, name only its layers.",
                    "manual",
                ),
            ),
            explains=("attaches",),
        )  # fmt: skip


def _skipped(structure: Structure) -> list[ModuleGroup]:
    """Linear layers (dense blocks, shared experts) whose names PEFT has converted away."""
    names = {name for item in structure.injection.converted for name in names_in(item.entry)}
    return [
        group for group in offered_layers(structure) if group.leaf in names and not group.adapted
    ]
