"""LD210: adapters on fused experts do not support lora_dropout."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
    require_lora,
)
from lora_doctor.rules._fused_experts import fused_experts, with_shapes

_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class DropoutOnFusedExperts(Rule):
    """The recipe adapts the experts of this mixture-of-experts model, which are fused
    three-dimensional parameters, and PEFT's adapters on parameters do not support `lora_dropout`.

    ## What happens
    `get_peft_model` ends in `lora.ParamWrapper does not work with lora_dropout != 0`, even for a
    recipe without `target_parameters`: PEFT turns `gate_proj, up_proj, down_proj` into
    `target_parameters` by itself.

    ## Why
    transformers 5 stores the experts of a layer in one parameter (gpt-oss does so in 4.x too). An
    adapter on a parameter is added to its value before the layer runs, so there is no input that
    dropout could be applied to. From 0.19 on PEFT converts the names for some families itself;
    lora-doctor asks the installed PEFT which.

    ## Versions
    `target_parameters` exists from PEFT 0.17 on; PEFT converts names from 0.19 on, with
    transformers 5.

    ## Fix
    `lora_dropout` 0. It changes what the model learns, so it is not applied by default.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD210"
    name = "dropout-on-fused-experts"
    summary = "Adapters on fused experts do not support lora_dropout."
    depth = "meta"
    symptoms = (Symptom(r"ParamWrapper does not work with lora_dropout", "peft>=0.17"),)
    examples = (
        Example(
            "broken",
            "arch:qwen3_moe",
            {"target_modules": _SEVEN, "lora_dropout": 0.05},
            requires={"transformers": ">=5", "peft": ">=0.21"},
            why="PEFT converts the experts, and ParamWrapper takes no dropout",
        ),
        Example(
            "healthy",
            "arch:qwen3_moe",
            {"target_modules": _SEVEN, "lora_dropout": 0.0},
            requires={"transformers": ">=5", "peft": ">=0.21"},
        ),
        Example(
            "healthy",
            "arch:qwen3_moe",
            {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.05},
            requires={"transformers": ">=4.53"},
            why="only the attention is asked for",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure, recipe = case.structure, case.recipe
        require_lora(recipe)
        experts, error = fused_experts(structure), structure.injection.error
        if not experts or error is None:
            return
        if "lora_dropout" not in error.message or not recipe.get("lora_dropout"):
            return
        yield self.finding(
            "error",
            f"PEFT puts adapters on the fused experts of {structure.model_class}, which do not "
            f"support dropout, and lora_dropout is {recipe.get('lora_dropout')}.",
            location=Location("recipe", "lora_dropout"),
            evidence=(
                Measurement("get_peft_model", f"{error.type}: {error.message}", "installed PEFT"),
                Measurement("fused experts", with_shapes(experts), structure.model_class),
                Measurement(
                    "converted by PEFT",
                    quoted(map(str, structure.injection.converted)) or "not read",
                    "installed PEFT",
                ),
            ),
            proof=Proof(
                "executed", ("PEFT refused the config on the full-size model, on the meta device")
            ),
            fixes=(Fix("Train without LoRA dropout.", "unsafe", (Edit("lora_dropout", 0.0),)),),
            explains=("attaches",),
        )
