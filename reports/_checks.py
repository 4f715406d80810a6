"""The checks of the training contract in words: what each number counts, and in which unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lora_doctor.reports._text import many, number, shown, visible

if TYPE_CHECKING:
    from lora_doctor.results.verification import Check, Verification


def check_value(check: Check | None, run: Verification | None = None) -> str:
    """The number of a check with what it is; the status of one that has none. ``run``: the one that
    the check is of."""
    if check is None:
        return ""
    if check.value is None or isinstance(check.value, bool):
        return check.status
    says = _WORDS.get(check.name)
    is_number = isinstance(check.value, (int, float)) and math.isfinite(check.value)
    if check.name == "forward" and isinstance(check.value, int):
        return _kinds(check.value, run)
    if says is not None and (is_number or isinstance(check.value, str)):
        words = says(check)
        if words:
            return words
    return shown(check.value, limit=80)


def _counted(noun: str) -> Callable[[Check], str]:
    def words(check: Check) -> str:
        return many(check.value, noun) if isinstance(check.value, int) else ""

    return words


def _kinds(count: int, run: Verification | None) -> str:
    """``1 kind of batch: text``."""
    kinds = ", ".join(batch.kind for batch in run.batches) if run is not None else ""
    words = many(count, "kind of batch", "kinds of batch")
    return f"{words}: {visible(kinds, 80)}" if kinds else words


def _share(check: Check) -> str:
    """``28 of 28 adapter parameters``: A and B of each layer are counted apart."""
    return "" if check.total is None else f"{visible(check.value, 60)} adapter parameters"


def _fall(check: Check) -> str:
    value = check.value
    if isinstance(value, str):
        return ""
    if not value:
        return "the loss did not change"
    return f"the loss {'fell' if value < 0 else 'rose'} by {number(abs(value))}"


def _moved(check: Check) -> str:
    """``0 of 21 frozen weights moved``."""
    value = check.value
    if not isinstance(value, (int, float)) or value != int(value):
        return ""
    of = f" of {check.total}" if check.total is not None else ""
    return f"{int(value):,}{of} frozen weights moved"


def _difference(what: str) -> Callable[[Check], str]:
    def words(check: Check) -> str:
        value: Any = check.value
        if isinstance(value, str):
            return ""
        return f"the same {what}" if not value else f"relative difference {number(value)}"

    return words


def _same_loss(check: Check) -> str:
    if isinstance(check.value, str):
        return ""
    return "the same loss" if not check.value else f"relative difference {number(check.value)}"


def _loss(check: Check) -> str:
    return "" if isinstance(check.value, str) else f"loss {number(check.value)}"


#: By the name of the check; each gives an empty string where the value is of another kind.
_WORDS: Mapping[str, Callable[[Check], str]] = {
    "builds": _counted("parameter"),
    "attaches": _counted("adapter"),
    "starts-at-base": _same_loss,
    "loss-finite": _loss,
    "gradients": _share,
    "steps": _counted("round"),
    "adapters-move": _share,
    "frozen-stay": _moved,
    "loss-falls": _fall,
    "save-reload": _difference("logits"),
    "merge": _difference("logits"),
}
