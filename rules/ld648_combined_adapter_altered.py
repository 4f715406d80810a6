"""LD648: a combination of adapters does not do what its parts do."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom, quoted
from lora_doctor.rules._adapter_steps import PROOF, at, call, faults


class CombinedAdapterAltered(Rule):
    """`add_weighted_adapter` silently makes another adapter than its parts add up to.

    ## What happens
    Nothing is raised. The combined adapter is too strong or too weak, or lacks a part: with all the
    weight on one adapter it does not even give that one back.

    ## Why
    The combination takes over the config of the first adapter and builds new matrices with a
    scaling of 1. What a config adds to plain LoRA is not combined: `use_rslora` scales a second
    time, the magnitude of `use_dora` and the bias of `lora_bias` are left at their beginnings.

    ## Versions
    Measured with the installed PEFT, on a small layer with adapters of these configs.

    ## Fix
    By hand: merge such adapters one after the other with `merge_and_unload`, or combine the merged
    weights.

    ## Links
    https://github.com/huggingface/peft/issues/3761
    """

    code = "LD648"
    name = "combined-adapter-altered"
    summary = "A combination of adapters does not do what its parts do."
    depth = "meta"
    descriptions = (
        Symptom(r"\badd_weighted_adapter\b.{0,120}\b(?:wrong|differ\w*|overscaled|too strong)\b"),
        Symptom(r"\b(?:rslora|dora|lora_bias)\b.{0,120}\badd_weighted_adapter\b"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/combined_of_dora.py",
            depth="meta",
            requires={"peft": ">=0.16"},
            why="the magnitudes of DoRA are not combined",
        ),
        Example("healthy", "tests/scripts/combined_by_cat.py", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for fault, step in faults(case, "altered"):
            lost = f"does not carry {fault.cause} over" if fault.cause else "loses a part of them"
            names = quoted(fault.adapters)
            yield self.finding(
                "error",
                f"{step.code} {lost}: with all the weight on one adapter ({names}) the combination "
                f"does not give that adapter ({fault.detail} of the output).",
                location=at(step),
                evidence=(
                    call(step),
                    Measurement(
                        f"{names}, alone and combined",
                        fault.detail,
                        "a small layer with adapters of these configs, random weights",
                    ),
                ),
                proof=PROOF,
                fixes=(
                    Fix(
                        "Merge these adapters into the model one after the other "
                        "(merge_and_unload), instead of combining them.",
                        "manual",
                    ),
                ),
            )
