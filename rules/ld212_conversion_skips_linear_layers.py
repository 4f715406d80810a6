"""LD212: PEFT converts target names to fused expert parameters and skips linear layers with the
same names."""

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
    """PEFT applies target names to the fused experts of this model, and the linear layers with the
    same names, in dense blocks and shared experts, get no adapter.

    ## What happens
    Training runs with adapters on the experts. `gate_proj, up_proj, down_proj` of the dense blocks
    and of the shared experts, which process every token, silently stay frozen.

    ## Why
    transformers 5 stores the experts of a layer in one parameter. From 0.19 on PEFT converts such
    names to `target_parameters` for some families; lora-doctor asks the installed PEFT which. The
    converted names no longer match the linear layers of dense blocks and shared experts.

    ## Versions
    transformers 5 with PEFT 0.19 and later.

    ## Fix
    No edit of the recipe helps: under these names the installed PEFT adapts either the experts or
    the linear layers.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD212"
    name = "conversion-skips-linear-layers"
    summary = "PEFT applies names to fused experts and skips linear layers with the same names."
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
            f"PEFT converts {quoted(names)} to parameters of the experts in "
            f"{structure.model_class} and so leaves out "
            f"{sum(group.count for group in skipped)} linear layers with the same names "
            f"({patterns}).",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement("converted by PEFT", quoted(map(str, structure.injection.converted)),
                        "installed PEFT"),
                Measurement("linear layers with these names, not adapted",
                        quoted([f"{group.count} x {group.pattern}" for group in skipped], 6),
                        structure.model_class),
            ),
            proof=Proof("measured", ("PEFT injected the adapters into the full-size model on "
                                    "the meta device, and they were counted")),
            fixes=(
                Fix(
                    "Under these names the installed PEFT adapts either these layers or the "
                    "experts; to train only the attention, list only its layers in target_modules.",
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
