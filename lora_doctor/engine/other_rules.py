"""What a rule may know of the rules that were asked before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _none_known(message: str) -> list[str]:
    return []


@dataclass(frozen=True)
class OtherRules:
    """``explained``: checks of the training contract that the findings so far account for.
    ``with_symptom``: rules whose symptoms occur in a message, as ``CODE name``, the nearest to
    its end first."""

    explained: frozenset[str] = frozenset()
    with_symptom: Callable[[str], list[str]] = _none_known
