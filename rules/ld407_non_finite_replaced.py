"""LD407: a training script replaces non-finite values."""

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
    Symptom,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import Replacement, TrainingScript

_A = {
    "loss": "A loss",
    "gradient": "A gradient",
    "activation": "An activation",
    "weight": "A weight",
}
_THEN = {
    "loss": "the step looks normal, and the cause of the bad loss remains",
    "gradient": "the optimizer uses a made-up gradient, which also enters its running averages",
    "activation": "the loss is finite and hides the overflow before it",
    "weight": "the model continues with corrupted values",
}


class NonFiniteReplaced(Rule):
    """A training script replaces a non-finite loss, gradient, activation or weight by a constant.

    ## What happens
    The logs show finite losses, training runs to its end, and the model has learned less than it
    seems, or nothing: every such step trains on a made-up value. The first module that overflowed
    is never found.

    ## Why
    `torch.nan_to_num`, `torch.where(torch.isnan(x), ...)`, `if torch.isnan(loss): loss =
    torch.tensor(0.0)` and clamping to the largest float16 number hide the symptom. A constant has
    no autograd graph, so its backward reaches no weight. `nan_to_num` and `where` pass back a zero
    gradient, and zero times an infinite derivative is NaN again, so weights can become NaN although
    the loss is finite. `clamp` does not even remove a NaN. A check that skips the step
    (`continue`), stops, or raises hides nothing and is not reported: gradient scalers skip steps in
    the same way.

    ## Versions
    All. Read with `ast`; the script is not run, and what it imports is not read.

    ## Fix
    Remove it and let the run stop at the first non-finite value. `lora-doctor check MODEL` names
    the first module that overflows; the usual fix is bfloat16 instead of float16.

    ## Links
    https://docs.pytorch.org/docs/stable/notes/amp_examples.html
    """

    code = "LD407"
    name = "non-finite-replaced"
    summary = "A training script replaces non-finite values."
    depth = "static"
    symptoms = (
        Symptom(
            r"(?i)(?<!\bno )(?<!without )(?<!\b0 )"
            r"\bnan(/inf)? (values? )?(loss )?(is |are |was |were )?(detected|encountered|found)\b"
        ),
        Symptom(r"(?i)\binf(inity)? detected in \w+"),
        Symptom(
            r"'loss': '?0(?:\.0+)?'?, 'grad_norm': '?nan\b(?!.{0,5000}?'grad_norm': '?\d)",
            "the Trainer logs a NaN loss as 0",
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/nan_replaced.py",
            depth="static",
            why="a NaN loss becomes 0.001, bad embeddings are clamped",
        ),
        Example(
            "broken",
            "tests/scripts/gradients_cleaned.py",
            depth="static",
            why="NaN gradients become zero",
        ),
        Example(
            "healthy",
            "tests/scripts/nan_stops.py",
            depth="static",
            why="skips what a scaler would skip, stops at the rest, and cleans only its log",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        script = case.script
        for found in script.replacements:
            yield self._finding(script, found)

    def _finding(self, script: TrainingScript, found: Replacement) -> Finding:
        source = f"{script.path.name}:{found.line}"
        evidence = [
            Measurement("the line", found.code, source),
            Measurement(f"{found.what} that is replaced", found.value, source),
            Measurement("by", _by(found), source),
        ]
        if found.function:
            evidence.append(Measurement("in the function", found.function, source))
        if found.how == "clamp":
            evidence.append(Measurement("clamp", "leaves a NaN as it is", "torch"))
        return self.finding(
            "warning",
            f"{_A[found.what]} that is not finite is replaced ({found.value} by {_by(found)}): "
            f"{_THEN[found.what]}.",
            location=Location("file", str(script.path), found.line),
            evidence=tuple(evidence),
            proof=Proof("inferred", "read in the script"),
            fixes=(
                Fix(
                    "Remove it and stop instead (if not torch.isfinite(loss): raise ...). To "
                    "find the module where it starts, run lora-doctor check on the model that "
                    "this script trains. Train in bfloat16 rather than float16.",
                    "manual",
                ),
            ),
        )


def _by(found: Replacement) -> str:
    if found.how == "clamp":
        return f"the bounds {found.by}" if found.by else "a bound"
    return found.by
