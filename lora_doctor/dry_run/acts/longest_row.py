"""The longest row of a trainer's set, through its own collator and loss: the first steps seldom
have it, and a row beyond the positions of the model ends the real run when its turn comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_doctor.dry_run.acts import cut_sets, set_aside, sharding
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.packed import evaluating
from lora_doctor.dry_run.acts.sampled_rows import is_of_tokens
from lora_doctor.nn.copying import undisturbed

#: Rows of a set without columns that are looked through.
_MOST = 1000
#: Scores of tokens that are computed at most: a float of each token for each of the vocabulary.
_LARGEST = 128_000_000


def look(acting: Acting, trainer: Any, loader: Any, model: Any) -> None:
    """Tell what the longest row raises where one of the usual length raises nothing, each alone, as
    not every collator pads. Nothing is tried where the longest row of a set that was cut is not
    known, or where this process has a part of the model."""
    data, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if data is None or model is None or not callable(collate):
        return
    if sharding.unsharded(acting).classes or int(getattr(trainer.args, "world_size", 1) or 1) > 1:
        return
    with acting.ours(), undisturbed():
        try:
            found = _found(data)
            if found is None or _too_large(model, found.tokens):
                return
            _loss(trainer, model, collate([data[found.usual]]))
        except Exception as error:  # noqa: BLE001 - code of the user's own, called in our way
            acting.journal.tell("no_longest", reason=f"{type(error).__name__}: {error}"[:300])
            return
        try:
            _loss(trainer, model, collate([found.row]))
        except Exception as error:  # noqa: BLE001 - that it fails is what is told
            acting.journal.tell(
                "longest",
                row=found.number + 1,
                tokens=found.tokens,
                rows=len(data),
                error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500],
            )


@dataclass(frozen=True)
class _Found:
    row: Any
    number: int
    tokens: int
    #: Number of a row of the usual length.
    usual: int


def _found(data: Any) -> _Found | None:
    """The longest row of a set; ``None`` where it is not known, or the usual one is as long."""
    lengths = _lengths(data)
    if lengths is None or not len(lengths):
        return None
    order = lengths.argsort(kind="stable")
    usual, longest = int(order[len(order) // 2]), int(order[-1])
    row, number, tokens = data[longest], longest, int(lengths[longest])
    if hasattr(data, "_data") and cut_sets.whole_of(data) is not data:
        aside = set_aside.longest_of(data)
        if aside is None or "input_ids" not in aside.row.column_names:
            return None
        columns = [name for name in data.column_names if name in aside.row.column_names]
        row, number = aside.row.select_columns(columns)[0], aside.number
        tokens = len(row["input_ids"])
    return None if lengths[usual] >= tokens else _Found(row, number, tokens, usual)


def _lengths(data: Any) -> Any:
    """Tokens of each row, as an array; ``None`` where they are not known without much work."""
    import numpy

    columns = getattr(data, "column_names", None)
    if isinstance(columns, list) and hasattr(data, "_data"):
        if "input_ids" not in columns:
            return None
        from pyarrow import compute

        table = data._data.table
        found = compute.list_value_length(table.column("input_ids")).to_numpy()
        return found if data._indices is None else found[data._indices.column(0).to_numpy()]
    has_rows = all(hasattr(type(data), name) for name in ("__len__", "__getitem__"))
    if not has_rows or not 0 < len(data) <= _MOST or not is_of_tokens(data[0]):
        return None
    rows = (data[number] for number in range(len(data)))
    return numpy.array([len(row["input_ids"]) for row in rows])


def _too_large(model: Any, tokens: int) -> bool:
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    return isinstance(size, int) and tokens * size > _LARGEST


def _loss(trainer: Any, model: Any, batch: Any) -> None:
    import torch

    if not isinstance(batch, Mapping):
        raise TypeError(f"the collator makes a {type(batch).__name__}")
    with torch.no_grad(), evaluating(model):
        trainer.compute_loss(model, trainer._prepare_inputs(batch))
