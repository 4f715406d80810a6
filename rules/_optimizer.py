"""What the rules about the optimizer have in common: trainable tensors that no step will move.

Pure: reads an :class:`OptimizerState`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from lora_doctor.rule_api import (
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    pattern_of,
    quoted,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import OptimizerState, TrainableTensor

Fate = Literal["in no group", "learning rate 0"]


def not_updated(
    rule: Rule,
    state: OptimizerState,
    fate: Fate,
    why: str,
    fixes: tuple[Fix, ...],
    *held: Measurement,
) -> Iterator[Finding]:
    """A finding for the trainable tensors of one fate, adapters and others in one.

    An error when no adapter tensor at all is updated, for this reason or another.

    Args:
        why: what is said of the tensors, such as ``in no group``.
        held: what else the optimizer holds, where that tells.
    """
    lost, others = (
        tuple(item for item in state.lost(adapter=adapter) if item.fate == fate)
        for adapter in (True, False)
    )
    if not lost and not others:
        return
    total = sum(item.adapter for item in state.tensors)
    nothing_learns = bool(lost) and len(state.lost(adapter=True)) == total
    yield rule.finding(
        "error" if nothing_learns else "warning",
        _sentence(lost, others, total, why),
        location=Location("module", (lost or others)[0].name),
        evidence=(
            *_groups(state),
            *_tensors("adapter tensors not updated", lost),
            *_tensors("other parameters not updated", others),
            *held,
            *(Measurement("note", note, "the scheduler") for note in state.notes),
        ),
        proof=Proof(
            "measured",
            "the tensors in the optimizer's groups were compared with the model's parameters",
        ),
        fixes=fixes,
    )


def patterns(items: Sequence[TrainableTensor]) -> list[str]:
    """Paths of the tensors with ``*`` for the numbers of layers, each once."""
    return list(dict.fromkeys(pattern_of(item.name) for item in items))


def _sentence(
    lost: Sequence[TrainableTensor], others: Sequence[TrainableTensor], total: int, why: str
) -> str:
    def told(items: Sequence[TrainableTensor]) -> str:
        return f"{len(items)} {why} ({quoted(patterns(items), 2)})"

    if not lost:
        return (
            f"{len(others)} trainable tensors outside the adapters will never be updated: "
            f"{told(others)}."
        )
    text = f"{len(lost)} of {total} trainable adapter tensors will never be updated: {told(lost)}"
    if others:
        text += f"; {len(others)} other trainable tensors will not be either: {told(others)}"
    return f"{text}."


def _groups(state: OptimizerState) -> Iterator[Measurement]:
    for name, groups in state.phases:
        text = ", ".join(f"{count} tensors at {rate:g}" for count, rate in groups)
        yield Measurement(name or "groups", text or "none", "the optimizer")


def _tensors(name: str, items: Sequence[TrainableTensor]) -> tuple[Measurement, ...]:
    return (Measurement(name, quoted(patterns(items), 4), "tensors, by identity"),) if items else ()
