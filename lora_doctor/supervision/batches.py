"""Rows out of the batches that a run's own collator made: what a dry run hands over.

A batch is what the model's forward was called with, each tensor as nested lists, by the name of its
argument. Padding and packing are undone, so that a row is one sample whatever the collator did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_doctor.results.supervision import Supervision, TokenizerFacts
from lora_doctor.supervision.observe import observe
from lora_doctor.supervision.pieces import Decode
from lora_doctor.supervision.rows import IGNORED, Layout, LossSettings, Row

Batch = Mapping[str, Any]


def observe_batches(
    batches: Sequence[Batch],
    tokenizer: TokenizerFacts,
    *,
    origin: str,
    causal: bool = True,
    label_count: int | None = None,
    decode: Decode | None = None,
    rows_total: int | None = None,
) -> Supervision | None:
    """The evidence on these batches; ``None`` where none of them has labels.

    Args:
        batches: arguments of forward: ``input_ids`` and ``labels`` (or ``completion_mask``), with
            ``attention_mask`` and ``position_ids`` where the collator made them.
        tokenizer: what :func:`lora_doctor.supervision.tokenizer.describe` said of the tokenizer in
            the process of the run; ``TokenizerFacts()`` where there is none.
        causal: whether the model shifts labels that are as many as tokens.
        label_count, decode, origin, rows_total: see :func:`observe` and ``LossSettings``.
    """
    rows = list(rows_of(batches))
    if not rows:
        return None
    settings = LossSettings(
        loss_on="given",
        loss_from="the collator of the run",
        layout=layout_of(batches, causal=causal),
        label_count=label_count,
    )
    found = observe(rows, tokenizer, settings, origin=origin, decode=decode, rows_total=rows_total)
    return replace(found, executed=True)


def rows_of(batches: Sequence[Batch]) -> Iterator[Row]:
    """The samples in the order in which they came, numbered from 1."""
    number = 0
    for batch in batches:
        for ids, labels, mask, positions in _lines(batch):
            whole = len(labels) != len(ids)
            samples = list(_samples(len(ids), positions))
            if len(samples) > 1 and not whole and _is_filling(ids, labels, *samples[-1]):
                samples.pop()
            for start, stop in samples:
                number += 1
                yield Row(
                    ids[start:stop],
                    labels if whole else labels[start:stop],
                    number,
                    None if mask is None else mask[start:stop],
                )


def layout_of(batches: Sequence[Batch], *, causal: bool) -> Layout:
    """How the labels of these batches belong to their tokens."""
    for batch in batches:
        labels, ids = batch.get("labels"), batch.get("input_ids")
        if not labels or not ids:
            continue
        if not isinstance(labels[0], list):
            return "classes"
        if len(labels[0]) != len(ids[0]):
            return "seq2seq"
    return "causal" if causal else "aligned"


def _lines(batch: Batch) -> Iterator[tuple[list[int], list[int], Any, Any]]:
    """Each line of a batch: token ids, labels, attention mask and positions."""
    ids, labels = batch.get("input_ids"), _labels(batch)
    if not ids or not labels or len(labels) != len(ids):
        return
    for index, line in enumerate(ids):
        own = labels[index]
        yield (
            line,
            own if isinstance(own, list) else [own],
            _line(batch.get("attention_mask"), index, len(line)),
            _line(batch.get("position_ids"), index, len(line)),
        )


def _labels(batch: Batch) -> Any:
    """``labels``, or what ``completion_mask`` leaves of the tokens (preference trainers)."""
    if batch.get("labels") is not None or batch.get("completion_mask") is None:
        return batch.get("labels")
    pairs = zip(batch["input_ids"], batch["completion_mask"], strict=False)
    return [
        [one if on else IGNORED for one, on in zip(ids, mask, strict=False)] for ids, mask in pairs
    ]


def _line(values: Any, index: int, width: int) -> Any:
    """The line of a matrix that is as wide as the tokens; masks of four dimensions are none."""
    if not isinstance(values, list) or index >= len(values):
        return None
    line = values[index]
    flat = isinstance(line, list) and len(line) == width and not isinstance(line[0], list)
    return line if flat else None


def _is_filling(ids: Sequence[int], labels: Sequence[int], start: int, stop: int) -> bool:
    """Whether the end of a packed line is what fills it up: axolotl counts positions on in it, and
    sends no mask that would tell."""
    return len(set(ids[start:stop])) == 1 and set(labels[start:stop]) == {IGNORED}


def _samples(width: int, positions: Any) -> Iterator[tuple[int, int]]:
    """Start and stop of each sample of a packed line: positions begin anew there."""
    if positions is None:
        yield 0, width
        return
    starts = [0, *(n for n in range(1, width) if positions[n] == 0 and positions[n - 1] != 0)]
    yield from zip(starts, [*starts[1:], width], strict=True)
