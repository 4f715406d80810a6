"""What is supervised, in words and rows of tokens, for every format that shows it to people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from lora_doctor.reports._charts import Segment, segments
from lora_doctor.reports._text import many, visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.finding import Finding
    from lora_doctor.results.supervision import ShownRow, Supervision, TokenPiece

_LOSS = {
    "all": "every token",
    "assistant": "the assistant's turns",
    "completion": "the completion",
    "response": "what follows the response marker",
    "given": "the labels as provided",
}
#: Around what is supervised, so that it can be told without colours.
OPEN, CLOSE = "⟦", "⟧"
LEGEND = f"{OPEN}the loss is computed on these{CLOSE}; the rest is context only"
CUT = " cut off: "


@dataclass(frozen=True)
class Run:
    """Tokens one after another that are all supervised, or all not."""

    supervised: bool
    tokens: tuple[str, ...]
    #: Tokens left out in the place of these.
    left_out: int = 0
    #: Whether the length limit cuts them off.
    cut: bool = False


def headline(found: Supervision) -> str:
    """How much of the rows is supervised, in a line."""
    return (
        f"{found.supervised_tokens:,} of {found.tokens:,} tokens ({found.share:.0%}) of "
        f"{many(found.judged, 'row')}, loss on {_LOSS[found.loss_on]}"
    )


def facts(found: Supervision) -> list[tuple[str, str]]:
    """What was looked at: name and value."""
    limit = "none" if found.max_length is None else f"{found.max_length:,} tokens"
    cut = f", {many(found.over_limit.count, 'row')} longer" if found.over_limit else ""
    rows = [
        ("Rows", visible(found.origin, 200)),
        ("Loss on", f"{_LOSS[found.loss_on]} ({visible(found.loss_from, 120)})"),
        ("Supervised", f"{found.supervised_tokens:,} of {found.tokens:,} tokens"),
        ("Length", f"{found.median_length:,} tokens (median), {found.longest:,} (longest)"),
        ("Limit", f"{limit}{cut}"),
        ("Answer ends in", _end(found)),
    ]
    if found.plan is not None:
        plan = found.plan
        warmup = f"; {plan.warmup_steps:,} of them warm-up" if plan.warmup_steps else ""
        rows.append(("Steps", f"{plan.steps:,}, each on {many(plan.rows_per_step, 'row')}{warmup}"))
    if found.evaluation is not None:
        rows.append(("Evaluation", many(found.evaluation.rows, "row")))
    return rows


def others(found: Supervision) -> list[str]:
    """What other settings of the loss would supervise in the same rows."""
    told = []
    for one in found.others:
        if one.why_not:
            told.append(
                f"loss on {_LOSS[one.loss_on]}: not possible with these rows: {one.why_not}"
            )
            continue
        share = one.supervised_tokens / found.tokens if found.tokens else 0.0
        nothing = many(one.rows_with_nothing, "row")
        none = f", nothing in {nothing}" if one.rows_with_nothing else ""
        told.append(
            f"loss on {_LOSS[one.loss_on]}: {one.supervised_tokens:,} tokens ({share:.0%}){none}"
        )
    return [visible(text, 300) for text in told]


def row_words(row: ShownRow) -> str:
    """Such as ``row 3: 8 of 26 tokens supervised``."""
    cut = row.uncut_tokens - row.tokens
    lost = f", {many(cut, 'token')} cut off" if cut > 0 else ""
    return f"row {row.number:,}: {row.supervised:,} of {row.tokens:,} tokens supervised{lost}"


def rows_of(finding: Finding, diagnosis: Diagnosis) -> list[ShownRow]:
    """The rows that a finding names, where their texts may be shown."""
    found = diagnosis.supervision
    if found is None:
        return []
    rows = (found.row(number) for number in finding.rows)
    return [row for row in rows if row is not None and row.pieces]


def texts(found: Supervision) -> list[ShownRow]:
    """The rows whose texts a page may hold: it is passed on, so only where they were asked for."""
    return [row for row in found.shown if row.pieces] if found.samples == "all" else []


def withheld(found: Supervision) -> bool:
    """Whether there are texts that the page leaves out."""
    return found.samples != "all" and any(row.pieces for row in found.shown)


def page_rows(finding: Finding, diagnosis: Diagnosis) -> list[ShownRow]:
    """:func:`rows_of`, where a page may hold their texts."""
    found = diagnosis.supervision
    return rows_of(finding, diagnosis) if found is not None and texts(found) else []


@dataclass(frozen=True)
class RowBar:
    """A row as a bar: what is supervised, what is context, what is cut off."""

    words: str
    parts: tuple[Segment, ...]


def bar(row: ShownRow) -> RowBar:
    """The counts of a row; where in it the loss is computed is not in them."""
    cut = max(row.uncut_tokens - row.tokens, 0)
    context = max(row.tokens - row.supervised, 0)
    sizes = [("supervised", row.supervised), ("context", context), ("cut", cut)]
    return RowBar(row_words(row), segments(sizes, float(row.tokens + cut)))


def runs(row: ShownRow, most: int) -> list[Run]:
    """The row's tokens, at most ``most`` of them: its first and its last; then what is cut off."""
    pieces = list(row.pieces)
    head, left_out = len(pieces) // 2, row.left_out
    tail = len(pieces) - head
    if len(pieces) > most:
        head, tail = most * 2 // 3, most - most * 2 // 3
        left_out += len(pieces) - most
    found = list(_runs(pieces))
    if left_out:
        end = _runs(pieces[len(pieces) - tail :])
        found = [*_runs(pieces[:head]), Run(False, (), left_out), *end]
    return [*found, *_cut_off(row, most)]


def _runs(pieces: Iterable[TokenPiece], *, cut: bool = False) -> Iterable[Run]:
    for supervised, run in groupby(pieces, key=lambda piece: piece.supervised):
        yield Run(supervised, tuple(visible(piece.text, 80) for piece in run), cut=cut)


def _cut_off(row: ShownRow, most: int) -> list[Run]:
    """What is kept of the tokens that are cut off, and how many more there are."""
    shown = row.cut[: max(most // 4, 4)]
    more = row.uncut_tokens - row.tokens - len(shown)
    rest = [Run(False, (), more, cut=True)] if shown and more > 0 else []
    return [*_runs(shown, cut=True), *rest]


def _end(found: Supervision) -> str:
    """What was seen at the ends of answers."""
    ends = [visible(found.tokenizer.name(one), 40) for one in found.end_tokens]
    parts = [f"{', '.join(ends)} in {many(found.end_trained.count, 'row')}"] if ends else []
    for rows, words in ((found.end_masked, "masked"), (found.end_missing, "missing")):
        if rows:
            parts.append(f"{words} in {many(rows.count, 'row')}")
    return "; ".join(parts) or "unknown"
