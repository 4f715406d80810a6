"""From rows to the evidence: what the loss sees of each, and which rows go wrong in which way.

Independent of where the rows came from: a dry run's batches or a data file. Nothing here reads a
file, imports torch or knows a framework.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Any

from lora_doctor.results.supervision import (
    RowSet,
    ShownRow,
    Supervision,
    TokenizerFacts,
    TokenPiece,
)
from lora_doctor.supervision.answer_end import answer_end
from lora_doctor.supervision.padding import padding_labels
from lora_doctor.supervision.pieces import Decode, shown_part, token_texts
from lora_doctor.supervision.rows import IGNORED, LossSettings, Row

#: Rows that are shown token by token: these many of a kind of failure, of all kinds, and without.
SHOWN_OF_A_KIND = 2
SHOWN_ROWS = 10
SHOWN_HEALTHY = 3
#: Tokens that are shown of what the limit cuts off.
CUT_SHOWN = 60
_OPENING = re.compile(r"\s*(<[A-Za-z][\w|-]{0,30}>)")
#: Fields of ``Supervision`` that are sets of rows in which something goes wrong.
PROBLEMS = (
    "nothing", "cut_to_nothing", "answers_cut", "end_masked", "end_missing", "two_bos",
    "marker_missing", "answer_changed", "opening_doubled", "prompt_not_prefix",
    "placeholders_cut", "labels_out_of_range", "prompt_supervised", "padding_supervised",
)  # fmt: skip


def observe(
    rows: Sequence[Row],
    tokenizer: TokenizerFacts,
    settings: LossSettings,
    *,
    origin: str,
    decode: Decode | None = None,
    rows_total: int | None = None,
) -> Supervision:
    """The evidence on these rows.

    Args:
        rows: samples as the loss gets them.
        tokenizer: what is known of the tokenizer; ``TokenizerFacts()`` where nothing is.
        settings: how the labels came about.
        origin: where rows and labels came from, in words.
        decode: token ids to text, for the rows that are shown; ``None`` leaves texts out.
        rows_total: rows of the whole data set, of which these are a sample.
    """
    read = [_read(row, tokenizer, settings) for row in rows if not row.refused]
    sets: dict[str, list[int]] = {}
    for one in read:
        for name in one.holds:
            sets.setdefault(name, []).append(one.row.number)
    refused = [row for row in rows if row.refused]
    lengths = [one.uncut_length for one in read]
    longest = max(read, key=lambda one: one.uncut_length, default=None)
    fields: dict[str, Any] = {name: RowSet.of(numbers) for name, numbers in sets.items()}
    found = Supervision(
        origin=origin,
        loss_on=settings.loss_on,
        loss_from=settings.loss_from,
        rows_total=rows_total,
        rows_seen=len(rows),
        tokens=sum(len(one.ids) for one in read),
        supervised_tokens=sum(one.count for one in read),
        tokenizer=tokenizer,
        max_length=settings.max_length,
        median_length=median_low(lengths) if lengths else 0,
        longest=longest.uncut_length if longest else 0,
        longest_row=longest.row.number if longest else 0,
        doubled_tag=next((one.tag for one in read if one.tag), ""),
        end_tokens=tuple(sorted({one.end_token for one in read if one.end_token is not None})),
        prompts=sum(bool(one.row.prompt_ids) for one in read),
        wrong_labels=tuple(sorted({label for one in read for label in one.wrong_labels})[:8]),
        label_count=settings.label_count,
        padding_labels=sum(one.padding_labels for one in read),
        refused=RowSet.of([row.number for row in refused]),
        refusal=refused[0].refused if refused else "",
        response_marker=settings.response_marker,
        **fields,
    )
    return replace(found, shown=_shown(found, read, decode))


@dataclass
class _Read:
    """A row without its padding, and what holds of it."""

    row: Row
    ids: Sequence[int]
    supervised: Sequence[bool]
    count: int
    uncut_length: int
    holds: list[str] = field(default_factory=list)
    tag: str = ""
    wrong_labels: tuple[int, ...] = ()
    #: Whether its labels are classes.
    classified: bool = False
    end_token: int | None = None
    padding_labels: int = 0

    def mark(self, name: str, holds: bool) -> None:
        if holds:
            self.holds.append(name)


def _read(row: Row, tokenizer: TokenizerFacts, settings: LossSettings) -> _Read:
    ids, labels = _without_padding(row)
    supervised = _supervised(ids, labels, settings)
    uncut = row.uncut_ids if row.uncut_ids is not None else ids
    one = _Read(row, ids, supervised, sum(supervised), max(len(uncut), len(ids)))
    # The loss reads the labels of padding as well: -1 there is an error, not an "ignore".
    one.wrong_labels = _out_of_range(row.labels, settings)
    one.mark("labels_out_of_range", bool(one.wrong_labels))
    one.mark("placeholders_cut", _placeholders_cut(row, ids, tokenizer))
    one.classified = settings.layout == "classes"
    if settings.layout in ("classes", "aligned"):
        one.mark("nothing", not any(label != IGNORED for label in labels))
        return one
    one.padding_labels = padding_labels(row, tokenizer, settings)
    one.mark("padding_supervised", bool(one.padding_labels))
    if settings.layout == "seq2seq" or row.attention_mask is None:
        one.count -= one.padding_labels  # else the mask has taken them out
    _mark_amounts(one, settings)
    one.mark("two_bos", _two_bos(ids, tokenizer))
    _mark_marker(one, settings)
    if not settings.packed:
        _mark_ends(one, tokenizer)
        _mark_prompt(one)
        _mark_answer(one)
    return one


def _without_padding(row: Row) -> tuple[Sequence[int], Sequence[int]]:
    """Token ids and labels of what is no padding."""
    mask = row.attention_mask
    if mask is None or all(mask) or len(mask) != len(row.input_ids):
        return row.input_ids, row.labels
    kept = [index for index, real in enumerate(mask) if real]
    ids = [row.input_ids[index] for index in kept]
    if len(row.labels) != len(row.input_ids):
        return ids, row.labels
    return ids, [row.labels[index] for index in kept]


def _supervised(
    ids: Sequence[int], labels: Sequence[int], settings: LossSettings
) -> Sequence[bool]:
    """For each token of the sequence that the loss is taken on, whether it is supervised."""
    found = [label != IGNORED for label in labels]
    if settings.layout == "causal" and found:
        found[0] = False  # nothing predicts the first token
    return found


def _mark_amounts(one: _Read, settings: LossSettings) -> None:
    """Nothing, everything, and what the length limit takes away."""
    row = one.row
    before = row.uncut_labels if row.uncut_labels is not None else row.labels
    supervised_before = sum(label != IGNORED for label in before[1:])
    lost = row.uncut_labels is not None and one.count < supervised_before
    one.mark("over_limit", one.uncut_length > len(one.ids))
    one.mark("cut_to_nothing", lost and one.count == 0)
    one.mark("answers_cut", lost)
    one.mark("nothing", one.count == 0 and not lost)
    if settings.layout == "causal":
        one.mark("everything", 0 < len(one.supervised) - 1 == one.count)


def _mark_ends(one: _Read, tokenizer: TokenizerFacts) -> None:
    cut = one.uncut_length > len(one.ids)
    ids, supervised = one.ids, one.supervised
    if len(supervised) != len(ids):  # labels of their own sequence
        ids = [label for label in one.row.labels if label != IGNORED]
        ids = ids[: len(ids) - one.padding_labels]
        supervised = [True] * len(ids)
    elif one.padding_labels and one.row.attention_mask is None:  # no mask has told what is padding
        ids, supervised = ids[: -one.padding_labels], supervised[: -one.padding_labels]
    end, token = answer_end(ids, supervised, tokenizer.end_ids, cut=cut)
    if end == "open":
        return
    one.mark(f"end_{end}", True)
    one.end_token = token if end == "trained" else None
    one.mark("end_masked_as_pad", end == "masked" and token == tokenizer.pad_id)


def _mark_prompt(one: _Read) -> None:
    prompt = one.row.prompt_ids
    if not prompt:
        return
    whole = one.row.uncut_ids if one.row.uncut_ids is not None else one.ids
    common = common_prefix(prompt, whole)
    one.mark("prompt_not_prefix", common < len(prompt))
    if len(one.supervised) == len(one.ids):
        # Earlier answers of a conversation and the header of this one may well be supervised; a
        # prompt of which every token is was not masked at all.
        one.mark("prompt_supervised", common > 1 and all(one.supervised[1:common]))


def _mark_answer(one: _Read) -> None:
    """What the template did to the answer that the data set has."""
    answer, text = (one.row.answer or "").strip(), one.row.text
    if not answer or text is None:
        return
    one.mark("answer_changed", answer not in text)
    opening = _OPENING.match(answer)
    if opening and re.search(rf"{re.escape(opening[1])}\s*{re.escape(opening[1])}", text):
        one.tag = opening[1]
        one.mark("opening_doubled", True)


def _mark_marker(one: _Read, settings: LossSettings) -> None:
    if not settings.response_ids:
        return
    ids = one.row.uncut_ids if one.row.uncut_ids is not None else one.ids
    missing = find(ids, settings.response_ids) is None
    one.mark("marker_missing", missing)
    as_text = missing and settings.response_marker.strip() in (one.row.text or "")
    one.mark("marker_only_as_text", as_text)


def _two_bos(ids: Sequence[int], tokenizer: TokenizerFacts) -> bool:
    bos = tokenizer.bos_id
    return bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]


def _out_of_range(labels: Sequence[int], settings: LossSettings) -> tuple[int, ...]:
    limit = settings.label_count
    return tuple(
        label
        for label in labels
        if label != IGNORED and (label < 0 or (limit is not None and label >= limit))
    )


def _placeholders_cut(row: Row, ids: Sequence[int], tokenizer: TokenizerFacts) -> bool:
    """Whether there are fewer places than features, or than there were before the limit."""
    for token in {*tokenizer.placeholder_ids, *row.features}:
        there = sum(one == token for one in ids)
        before = sum(one == token for one in row.uncut_ids) if row.uncut_ids is not None else there
        if there < row.features.get(token, before):
            return True
    return False


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )


def find(ids: Sequence[int], part: Sequence[int]) -> int | None:
    """Where ``part`` stands last in ``ids``; ``None`` where it does not."""
    width, wanted = len(part), list(part)
    for start in range(len(ids) - width, -1, -1):
        if list(ids[start : start + width]) == wanted:
            return start
    return None


# --- what is shown -------------------------------------------------------------------------------


def _shown(
    found: Supervision, read: Sequence[_Read], decode: Decode | None
) -> tuple[ShownRow, ...]:
    """The first rows of each failure, and some without."""
    wanted: dict[int, None] = {}
    for name in PROBLEMS:
        rows: RowSet = getattr(found, name)
        wanted.update(dict.fromkeys(rows.numbers[:SHOWN_OF_A_KIND]))
    picked = list(wanted)[:SHOWN_ROWS]
    others = [one.row.number for one in read if one.row.number not in wanted]
    picked += others[: max(SHOWN_HEALTHY - len(picked), 0)]
    return tuple(_show(one, decode) for one in read if one.row.number in picked)


def _show(one: _Read, decode: Decode | None) -> ShownRow:
    ids: Sequence[int] = one.ids
    supervised: Sequence[bool]
    if one.classified:  # a class is no token
        supervised = [False] * len(ids)
    elif len(one.supervised) != len(ids):  # the labels are what is predicted
        ids = [label for label in one.row.labels if label >= 0]  # others have no text
        supervised = [True] * len(ids)
    else:
        supervised = one.supervised
    shown = ShownRow(one.row.number, len(one.ids), one.count, one.uncut_length)
    if decode is None or not ids or len(supervised) != len(ids):
        return shown
    head, tail = shown_part(len(ids))
    pieces = [*_pieces(ids, supervised, head, decode), *_pieces(ids, supervised, tail, decode)]
    return replace(
        shown,
        pieces=tuple(pieces),
        left_out=len(ids) - len(pieces),
        cut=tuple(_cut_off(one, len(ids), decode)),
    )


def _cut_off(one: _Read, kept: int, decode: Decode) -> list[TokenPiece]:
    """The first tokens that the limit cuts off the end of a row."""
    whole, labels = one.row.uncut_ids, one.row.uncut_labels
    if whole is None or labels is None or len(labels) != len(whole):
        return []
    if len(whole) <= kept or list(whole[:kept]) != list(one.ids):
        return []
    supervised = [label != IGNORED for label in labels]
    return _pieces(whole, supervised, range(kept, min(len(whole), kept + CUT_SHOWN)), decode)


def _pieces(
    ids: Sequence[int], supervised: Sequence[bool], part: Iterable[int], decode: Decode
) -> list[TokenPiece]:
    indices = list(part)
    texts = token_texts([ids[index] for index in indices], decode)
    return [TokenPiece(text, supervised[i]) for i, text in zip(indices, texts, strict=True)]
