"""The checks of the training contract in words: what each number counts, and in which unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lora_doctor.reports._text import many, number, shown, visible

if TYPE_CHECKING:
    from lora_doctor.results.verification import Check


def check_value(check: Check | None) -> str:
    """The number of a check with what it is; the status of one that has none."""
    if check is None:
        return ""
    if check.value is None or isinstance(check.value, bool):
        return check.status
    says = _WORDS.get(check.name)
    is_number = isinstance(check.value, (int, float)) and math.isfinite(check.value)
    if says is not None and (is_number or isinstance(check.value, str)):
        words = says(check)
        if words:
            return words
    return shown(check.value, limit=80)


def expected_words(check: Check) -> str:
    """What the number is held against; with the quantity where the contract gives a bound alone."""
    quantity = _QUANTITIES.get(check.name, "")
    bare = check.expected.startswith(("at most ", "below "))
    return f"{quantity} {check.expected}" if quantity and bare else check.expected


_QUANTITIES = {
    "starts-at-base": "a relative difference of the loss of",
    "loss-falls": "a change of the loss",
}


def _counted(noun: str) -> Callable[[Check], str]:
    def words(check: Check) -> str:
        return many(check.value, noun) if isinstance(check.value, int) else ""

    return words


def _kinds(check: Check) -> str:
    """``1 kind of batch: text``; the contract names the kinds in the detail."""
    if not isinstance(check.value, int):
        return ""
    kinds = check.detail.removeprefix("batches: ") if check.detail.startswith("batches: ") else ""
    words = many(check.value, "kind of batch", "kinds of batch")
    return f"{words}: {visible(kinds, 80)}" if kinds else words


def _share(check: Check) -> str:
    """``28 of 28 adapter weights``: A and B of each layer are counted apart."""
    text = str(check.value)
    counts = text.split(" of ")
    whole = len(counts) == 2 and all(part.isdigit() for part in counts)
    return f"{visible(text, 60)} adapter parameters" if whole else ""


def _fall(check: Check) -> str:
    value = check.value
    if isinstance(value, str):
        return ""
    if not value:
        return "the loss did not change"
    return f"the loss {'fell' if value < 0 else 'rose'} by {number(abs(value))}"


def _moved(check: Check) -> str:
    """``0 of 21 weights moved``: the expectation says of how many."""
    value = check.value
    if not isinstance(value, (int, float)) or value != int(value):
        return ""
    total = check.expected.removeprefix("0 of ").removesuffix(" moved")
    of = f" of {total}" if total.isdigit() else ""
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
    "forward": _kinds,
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
