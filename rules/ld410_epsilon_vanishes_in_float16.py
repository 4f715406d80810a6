"""LD410: a norm whose epsilon is zero in float16, so a row of zeros becomes NaN."""

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
    Severity,
    Symptom,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import NormReading


class EpsilonVanishesInFloat16(Rule):
    """A norm adds its epsilon in float16, where it rounds to zero, and divides a row of zeros by
    zero.

    ## What happens
    Padding, a masked frame or an empty image patch reaches the norm as a row of zeros, and its
    output is NaN. The loss is then NaN, in some batches only.

    ## Why
    The smallest number above zero in float16 is 6e-8. An epsilon of 1e-8 is zero there, and `x /
    sqrt(variance + 0)` is 0 / 0 for a row without variance. `torch.nn.LayerNorm` adds it in float32
    whatever the dtype; custom norms often do not. The norm itself is run on a row of zeros, in the
    recipe's dtype.

    ## Versions
    All.

    ## Fix
    By hand: compute the norm in float32, or give it an epsilon of 1e-6; or better, train in
    bfloat16, which has the range of float32.

    ## Links
    https://github.com/pytorch/pytorch/issues/41527
    """

    code = "LD410"
    name = "epsilon-vanishes-in-float16"
    summary = "A norm's epsilon is zero in float16, and a row of zeros becomes NaN."
    depth = "tiny"
    symptoms = (
        Symptom(r"(?i)layer_?norm (?:returns?|outputs?|gives?) nan", "fp16, rows of zeros"),
    )
    examples = (
        Example(
            "broken",
            "tests.salmonn:vanishing",
            {"target_modules": r"llm\..*\.(q_proj|v_proj)", "dtype": "float16"},
            why="a norm of the user's that adds 1e-8 in fp16",
        ),
        Example(
            "healthy",
            "tests.salmonn:loud",
            {"target_modules": r"llm\..*\.(q_proj|v_proj)", "dtype": "float16"},
            why="an epsilon of 1e-4 is a number in fp16",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for reading in case.verification.observations.norms:
            if not reading.zero_row_finite:
                yield self._vanishes(reading)

    def _vanishes(self, reading: NormReading) -> Finding:
        hit = reading.zero_rows > 0
        severity: Severity = "error" if hit else "warning"
        what = (
            f"{reading.zero_rows} rows of zeros reached it in this run"
            if hit
            else "no such row reached it in this run, but padding may make one"
        )
        return self.finding(
            severity,
            f"{reading.path} ({reading.class_name}{_and(reading.count - 1)}) turns a row of "
            f"zeros into NaN in {reading.dtype}: its {reading.attribute} of {reading.epsilon:g} "
            f"rounds to zero; {what}.",
            location=Location("module", reading.path),
            evidence=(
                Measurement("output for a row of zeros", "not finite",
                        f"the layer was run, in {reading.dtype}"),
                Measurement(f"{reading.attribute} in {reading.dtype}", _in_half(reading),
                        "smallest positive value of float16: 6e-08"),
                Measurement("smallest variance of its input", f"{reading.variance[0]:.2g}",
                        "measured on the batch"),
            ),
            proof=Proof("measured", "the layer itself was run on a row of zeros"),
            fixes=(
                Fix(
                    f"Make {reading.path} compute in float32 (`x = x.float()` before the "
                    f"square), or make {reading.attribute} 1e-6 or more, or train in bfloat16.",
                    "manual",
                ),
            ),
            explains=("loss-finite", "gradients") if hit else (),
        )  # fmt: skip


def _and(others: int) -> str:
    return f", and {others} more" if others else ""


def _in_half(reading: NormReading) -> str:
    import struct

    value = struct.unpack("<e", struct.pack("<e", reading.epsilon))[0]
    return f"{value:g}"
