"""Labels by a collator of transformers: it is called, not imitated.

Imports transformers and torch inside the function: only a child process calls it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.supervision.rows import Row

#: Rows of a batch: more than one, so that there is padding.
_BATCH = 8


def collated(rows: Sequence[Row], tokenizer: Any, name: str) -> list[Row]:
    """The rows with labels as the collator ``transformers.NAME`` makes them.

    Raises:
        InputError: transformers has no such collator.
        EvidenceError: the collator refuses these rows; the text is its own.
    """
    collate = _collator(tokenizer, name)
    found: list[Row] = []
    for start in range(0, len(rows), _BATCH):
        found += _batch(rows[start : start + _BATCH], collate, name)
    return [_with_uncut_labels(row, collate, name) for row in found]


def _collator(tokenizer: Any, name: str) -> Any:
    import transformers

    kind: Any = getattr(transformers, name.removeprefix("transformers."), None)
    if "ollator" not in name or not callable(kind):
        raise InputError(f"data_collator {name!r}: not a data collator of transformers")
    if not inspect.isclass(kind):
        return kind
    make: Any = kind
    options = {"mlm": False} if "mlm" in inspect.signature(kind).parameters else {}
    try:
        return make(tokenizer, **options)
    except Exception as error:
        raise EvidenceError(f"data_collator {name}: {type(error).__name__}: {error}") from error


def _batch(rows: Sequence[Row], collate: Any, name: str) -> list[Row]:
    features = [_feature(row.input_ids, row.labels, name) for row in rows]
    try:
        batch = collate(features)
        labels, ids = batch["labels"].tolist(), batch["input_ids"].tolist()
        masks = batch["attention_mask"].tolist() if "attention_mask" in batch else None
    except Exception as error:
        raise EvidenceError(
            f"data_collator {name} makes no batch of these rows: {type(error).__name__}: {error}"
        ) from error
    return [
        replace(
            row,
            input_ids=ids[index],
            labels=labels[index],
            attention_mask=masks[index] if masks else None,
        )
        for index, row in enumerate(rows)
    ]


def _feature(ids: Sequence[int], labels: Sequence[int], name: str) -> dict[str, Any]:
    """What the Trainer hands to the collator; one that makes labels of the tokens gets none."""
    found: dict[str, Any] = {"input_ids": list(ids), "attention_mask": [1] * len(ids)}
    return found if "LanguageModeling" in name else {**found, "labels": list(labels)}


def _with_uncut_labels(row: Row, collate: Any, name: str) -> Row:
    """The labels that the row would have without the length limit, by the same collator."""
    if row.uncut_ids is None or row.uncut_labels is None:
        return row
    whole = replace(row, input_ids=row.uncut_ids, labels=row.uncut_labels)
    return replace(row, uncut_labels=_batch([whole], collate, name)[0].labels)
