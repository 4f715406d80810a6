"""LD211: a target is one part of a fused parameter, which PEFT adapts only as a whole."""

from __future__ import annotations

import re
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
    require_lora,
    target_entries,
)
from lora_doctor.rules._fused_experts import fused_experts, with_shapes

_PART = re.compile(
    r"Cannot convert PEFT target\(s\) (?P<given>.+?) without also targeting (?P<missing>.+?) "
    r"because .*fused into (?P<fused>\w+)"
)


class PartOfFusedExperts(Rule):
    """A target names one of several matrices that this model stores in one fused parameter of its
    experts, and PEFT adapts all of them or none.

    ## What happens
    `get_peft_model` raises `Cannot convert PEFT target(s) gate_proj without also targeting up_proj
    because ... fused into gate_up_proj`.

    ## Why
    transformers 5 stores `gate_proj` and `up_proj` of all experts of a layer in one parameter. From
    0.19 on PEFT converts their names to `target_parameters` for some families, and an adapter on
    the fused parameter changes both.

    ## Versions
    transformers 5 with PEFT 0.19 and later.

    ## Fix
    Add the names of the other parts. More is trained than was asked for, so it is not applied by
    default; to train only the attention, name only its layers.

    ## Links
    https://huggingface.co/docs/peft/package_reference/lora
    """

    code = "LD211"
    name = "part-of-fused-experts"
    summary = "A target is one part of a fused expert parameter; PEFT needs all parts."
    depth = "meta"
    symptoms = (Symptom(r"Cannot convert PEFT target\(s\)", "peft>=0.19"),)
    examples = (
        Example(
            "broken",
            "arch:qwen3_moe",
            {"target_modules": ["q_proj", "gate_proj"], "lora_dropout": 0.0},
            requires={"transformers": ">=5", "peft": ">=0.21"},
            why="gate_proj and up_proj are one parameter",
        ),
        Example(
            "healthy",
            "arch:qwen3_moe",
            {"target_modules": ["q_proj", "gate_proj", "up_proj"], "lora_dropout": 0.0},
            requires={"transformers": ">=5", "peft": ">=0.21"},
            why="both parts are named",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "gate_proj"]},
            why="two layers, each of its own",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure, recipe = case.structure, case.recipe
        require_lora(recipe)
        experts, error = fused_experts(structure), structure.injection.error
        refused = _PART.search(error.message) if error is not None else None
        if not experts or error is None or refused is None:
            return
        missing = re.findall(r"\w+", refused["missing"])
        yield self.finding(
            "error",
            f"{refused['given']} is one part of the fused {refused['fused']} in "
            f"{structure.model_class}; PEFT adapts it only together with {', '.join(missing)}.",
            location=Location("recipe", "target_modules"),
            evidence=(
                Measurement("get_peft_model", f"{error.type}: {error.message}", "installed PEFT"),
                Measurement("fused experts", with_shapes(experts), structure.model_class),
            ),
            proof=Proof(
                "executed", ("PEFT refused the config on the full-size model, on the meta device")
            ),
            fixes=(
                Fix(
                    f"Also target the other part: {', '.join(missing)}.",
                    "unsafe",
                    (Edit("target_modules", [*target_entries(recipe), *missing]),),
                ),
            ),
            explains=("attaches",),
        )
