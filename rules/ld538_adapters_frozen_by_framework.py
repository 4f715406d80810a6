"""LD538: a setting of the framework that freezes the adapters it has just added."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    ENTRY,
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._set_up import all_frozen, freezing, located, weight_name, written


class AdaptersFrozenByFramework(Rule):
    """A setting of the framework freezes weights by name after PEFT has wrapped the model, and
    leaves no adapter trainable.

    ## What happens
    With `unfrozen_parameters` and `adapter: lora`, axolotl freezes every weight that no pattern
    matches, including the adapters. It logs `All parameters are frozen`, and the first backward
    raises `element 0 of tensors does not require grad`.

    ## Why
    The patterns are matched from the start of the parameter names, which begin with
    `base_model.model.` in a wrapped model. A pattern for the unwrapped model (`^lm_head.weight$`,
    `model.layers.1[0-9].`) matches nothing there, and a pattern for a module without adapters
    freezes everything else.

    ## Versions
    Read in the source of axolotl 0.19.

    ## Fix
    Remove the setting: PEFT already freezes everything but the adapters. List modules that should
    be trained in addition in `lora_modules_to_save`.

    ## Links
    https://docs.axolotl.ai/docs/config-reference.html
    """

    code = "LD538"
    name = "adapters-frozen-by-framework"
    summary = "A setting of the framework freezes the adapters that PEFT has added."
    depth = "meta"
    symptoms = (Symptom(r"All parameters are frozen\. Model will not be trained"),)
    examples = (
        Example("broken", "tests/set_ups/axolotl_unfrozen.yaml"),
        Example("healthy", "tests/set_ups/axolotl.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        set_up = case.set_up
        adapted = [group for group in case.structure.groups if group.adapted]
        if not case.structure.injection.ok or not adapted:
            return
        for entry, freezes in freezing(case).items():
            if not all_frozen(freezes, adapted):
                continue
            count = sum(group.adapted for group in adapted)
            yield self.finding(
                "error",
                f"According to its source, {set_up.format} freezes all {count} adapters because of "
                f"{entry}: none of their weights stays trainable.",
                location=located(set_up, entry),
                evidence=(
                    written(set_up, entry),
                    Measurement("adapters that stay trainable", f"0 of {count}",
                                f"by their names, such as {weight_name(adapted[0].examples[0])}"),
                ),
                proof=Proof(
                    "inferred", f"from the source of {set_up.format}"
                ),
                fixes=(
                    Fix(f"Remove {entry}, so that the adapters are trained.", "unsafe",
                        (Edit(f"{ENTRY}{entry}", REMOVE),)),
                ),
            )  # fmt: skip
