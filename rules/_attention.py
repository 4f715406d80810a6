"""What rules about the attention implementation share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Edit, EvidenceError, Fix, Measurement
from lora_doctor.rules._ablation import judged

if TYPE_CHECKING:
    from lora_doctor.rule_api import AttentionReading, Verification

KEY = "attn_implementation"


def readings(case: Case) -> tuple[AttentionReading, ...]:
    """What speaks against the implementation that the model was run with.

    Raises:
        EvidenceError: no training forward was run.
    """
    seen = judged(case)
    found = seen.observations.attention
    if not found:
        failed = seen.check("forward")
        if failed is None or failed.status == "skipped":
            raise EvidenceError("the training contract stopped before the first forward")
    return found


def forward_raised(seen: Verification) -> bool:
    """Whether the training forward did not run."""
    return seen.failure is not None and seen.failure.check == "forward"


def measurements(case: Case, found: Sequence[AttentionReading]) -> Iterator[Measurement]:
    """The implementation, what speaks against it, and what the forward raised."""
    seen = case.verification
    source = f"{seen.depth} model, executed"
    chosen = "recipe" if KEY in case.recipe else "not set; chosen by transformers"
    yield Measurement(KEY, implementation(found), chosen)
    for item in found:
        what = "arguments it ignores" if item.dropped else "from the model's code"
        where = item.path or "the model"
        yield Measurement(f"{what}, at {where}", item.dropped or item.warning, source)
    if forward_raised(seen) and seen.failure is not None:
        yield Measurement("forward", f"{seen.failure.type}: {seen.failure.message}", source)


def implementation(found: Sequence[AttentionReading]) -> str:
    """The names of the implementations."""
    names = dict.fromkeys(item.implementation for item in found if item.implementation)
    return ", ".join(names) or "unknown"


def eager_instead(case: Case) -> tuple[Fix, ...]:
    """The fix that computes all of the attention; in words where no recipe loads the model."""
    if case.source.kind in ("module", "factory"):
        return (
            Fix(
                ('Load the model with attn_implementation="eager" where the script creates it.'),
                "manual",
            ),
        )
    return (
        Fix(
            "Use the attention that the model was trained with: attn_implementation eager; it "
            "takes more memory and time.",
            "unsafe",
            (Edit(KEY, "eager"),),
        ),
    )
