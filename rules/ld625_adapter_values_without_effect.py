"""LD625: a saved adapter whose values have no effect or are not finite."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.rules._saved_adapter import weights_file


class AdapterValuesWithoutEffect(Rule):
    """A saved adapter has non-finite values, or B matrices that are all zero.

    ## What happens
    With one non-finite value every output is `nan`. With B at zero the adapter adds nothing: the
    model answers like the base model.

    ## Why
    The run diverged and was saved anyway. B is initialised with zeros: the adapter was saved before
    the first step, its parameters were not in the optimizer, got no gradient, or were sharded and
    saved from a copy that had not been updated.

    ## Versions
    All.

    ## Fix
    Use an earlier checkpoint; for zeros, find the cause in the training: check the recipe that it
    was trained with.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD625"
    name = "adapter-values-without-effect"
    summary = "A saved adapter has non-finite values, or B matrices of zeros only."
    depth = "full"
    symptoms = (Symptom(r"NaNs detected in the merged (?:weights|bias)"),)
    descriptions = (
        Symptom(r"\b(?:all|every)\b.{0,20}\blora_B\b.{0,20}\b(?:zeros?|0)(?!\.?\d)", weight=1),
        Symptom(r"\badapter\b.{0,60}\b(?:100 percent|100 ?%|full of|only|all) nan\b"),
    )
    about_saved_adapter = True
    told_as = ("All lora_B of the saved adapter are zero, it changes nothing.",)
    examples = (
        Example(
            "broken", "tests.saved_adapters:with_a_number_that_is_none", loaded=True, depth="full"
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="full"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        values = case.adapter_values
        if values.not_finite:
            yield self.finding(
                "error",
                f"{len(values.not_finite)} of {values.looked_at} tensors of the adapter have "
                "non-finite values: every output becomes NaN.",
                location=weights_file(case),
                evidence=(
                    Measurement("not finite", quoted(values.not_finite, 4), "values in the file"),
                ),
                proof=Proof("measured", "every value of the file was read"),
                fixes=(Fix("Use a checkpoint from before the run diverged.", "manual"),),
            )
        factors = [name for name in case.adapter.weights.tensors if ".lora_B." in name]
        zero = [name for name in factors if name in values.zero]
        if not zero:
            return
        yield self.finding(
            "error" if len(zero) == len(factors) else "warning",
            f"{len(zero)} of {len(factors)} B matrices of the adapter are all zero: in these "
            "layers the adapter has no effect.",
            location=weights_file(case),
            evidence=(Measurement("all zero", quoted(zero, 4), "values in the file"),),
            proof=Proof("measured", "every value of the file was read"),
            fixes=(
                Fix(
                    "Check the recipe that it was trained with: these parameters were never "
                    "updated, or another copy of them was saved.",
                    "manual",
                ),
            ),
        )
