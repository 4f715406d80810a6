"""LD538: settings with which the framework freezes the adapters that it has put on."""

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
    """A setting of the framework freezes weights by name after PEFT has wrapped the model, and no
    adapter stays trainable.

    ## What happens
    axolotl with `unfrozen_parameters` beside `adapter: lora` freezes every weight that no pattern
    matches, the adapters included. It logs `All parameters are frozen` and the first backward
    raises `element 0 of tensors does not require grad`.

    ## Why
    The patterns are matched from the beginning of the parameter names, and in a wrapped model these
    begin with `base_model.model.`. A pattern for the model as it comes (`^lm_head.weight$`,
    `model.layers.1[0-9].`) matches nothing there; one for a module that has no adapter freezes the
    rest.

    ## Versions
    Read in axolotl 0.19.

    ## Fix
    Take the setting out: with an adapter nothing else is trained anyway. What is to be trained
    beside the adapters is named in `lora_modules_to_save`.

    ## Links
    https://docs.axolotl.ai/docs/config-reference.html
    """

    code = "LD538"
    name = "adapters-frozen-by-framework"
    summary = "A setting of the framework freezes the adapters that PEFT has put on."
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
                f"By its source {set_up.format} freezes all {count} adapters for {entry}: no "
                "weight of theirs is left trainable.",
                location=located(set_up, entry),
                evidence=(
                    written(set_up, entry),
                    Measurement("adapters that stay trainable", f"0 of {count}",
                                f"by their names, such as {weight_name(adapted[0].examples[0])}"),
                ),
                proof=Proof(
                    "inferred", f"concluded from the source of {set_up.format}, which was not run"
                ),
                fixes=(
                    Fix(f"Take {entry} out: the adapters are then trained.", "unsafe",
                        (Edit(f"{ENTRY}{entry}", REMOVE),)),
                ),
            )  # fmt: skip
