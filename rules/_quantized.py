"""What the rules about quantized layers have in common: the finding and its fix.

Pure: reads a :class:`Case`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    EvidenceError,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    quoted,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import QuantizedUse, Use, Verification


def in_bits(kind: str | None) -> str:
    """``4 bits`` for ``4bit``, the kind of quantization of a recipe."""
    return (kind or "").replace("bit", " bits")


def found(rule: Rule, case: Case, use: Use, *others: Fix) -> Iterator[Finding]:
    """A finding for each reading of one kind of use.

    Args:
        others: fixes beside leaving these layers in floating point.
    """
    run = _telling_run(case)
    for one in run.quantized_uses:
        if one.use != use:
            continue
        yield rule.finding(
            "error",
            f"Loaded in {in_bits(case.recipe.quantized)}, the model does not run: {one.sentence}.",
            location=Location("recipe", f"load_in_{case.recipe.quantized}"),
            evidence=(
                Measurement("raised when quantized", one.error, one.where),
                Measurement(
                    "with the skip list of the fix",
                    f"all forwards run, {one.quantized} of {one.linears} layers quantized",
                    f"the same {run.depth} model, loaded again and executed",
                ),
            ),
            proof=Proof(
                "executed",
                ("the model was run quantized, and again with these layers in floating point"),
            ),
            fixes=(_leave_out(case, one), *others),
            explains=("forward", "starts-at-base", "gradients", "steps"),
        )


def _telling_run(case: Case) -> Verification:
    """The run that shows how quantized layers are used. For real weights that do not run it is the
    tiny model's, with the same class and names: each list that is tried means loading them all
    again."""
    seen = case.verification
    stopped = seen.failure is not None or seen.outcome == "undetermined"
    return case.tiny if seen.depth == "full" and case.recipe.quantized and stopped else seen


def _leave_out(case: Case, one: QuantizedUse) -> Fix:
    """Load these modules in floating point; a list takes the place of the library's default, so it
    names that as well, as it is for the model at full size."""
    names = _default(case, one)
    skip = [*names, *(name for name in one.names if name not in names)]
    if case.recipe.origins.get(f"load_in_{case.recipe.quantized}") == "checkpoint":
        return Fix(
            f"The checkpoint is already quantized, {quoted(one.names, 6)} included: load the "
            "unquantized checkpoint from which it was made, with llm_int8_skip_modules "
            f"{', '.join(skip)}.",
            "manual",
        )
    return Fix(
        f"Keep {quoted(one.names, 6)} in floating point: llm_int8_skip_modules {', '.join(skip)}.",
        "safe",
        (Edit("llm_int8_skip_modules", skip),),
    )


def _default(case: Case, one: QuantizedUse) -> list[str]:
    try:
        asked = case.structure.quantization
    except EvidenceError:
        asked = None
    if asked is None:  # nobody could be asked: the list that was executed
        return [name for name in one.skip if name not in one.names]
    return list(dict.fromkeys([*asked.default_skip, *(asked.skip or ())]))
