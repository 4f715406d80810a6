"""How much of everything a page shows, so that it stays small whatever the model is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much of everything is shown; the rest is counted, never dropped in silence."""

    text: int  # characters of a value
    rows: int  # evidence rows of a finding
    findings: int  # findings with all their details
    lines: int  # findings, rules and notes on one line each
    traceback: int  # characters
    cells: int  # of the picture, per tower
    tokens: int  # of a row of the training data
    json: int  # bytes of the embedded diagnosis
