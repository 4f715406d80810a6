"""Whether a training is on rows that its model writes, as with GRPO: an answer without an end is
the model's then, and not the user's."""

from __future__ import annotations

from typing import Any


def writes_its_rows(trainer: Any) -> bool:
    """Whether the collator of a Trainer hands the rows on as they are: the batches of forward are
    made by the Trainer, of what it lets the model write. ``trainer``: has the attributes of one."""
    collate: Any = getattr(trainer, "data_collator", None)
    rows: Any = getattr(trainer, "train_dataset", None)
    if not callable(collate) or not hasattr(rows, "__getitem__"):
        return False
    try:
        return isinstance(collate([rows[0]]), list)
    except Exception:  # noqa: BLE001 - it is the user's, and asks for more than one row
        return False
