"""Whether a model takes rows as long as those of the training data."""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.results.error_report import ErrorReport


@dataclass(frozen=True)
class LongRow:
    """A tiny model with as many positions as the real one, run on a row of this length."""

    #: Tokens of the row.
    length: int
    #: What forward raised; ``None`` where it went through.
    error: ErrorReport | None = None
    #: The longest row that it takes; 0 where ``error`` is ``None``.
    most: int = 0
    #: Whether it is the decoder's row, the labels, and the encoder takes something else.
    decoded: bool = False
