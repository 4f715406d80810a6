"""Rows spread over a trainer's set, through its own collator: the first batches hold a handful, and
what the length limit does to the longest rows is seldom among them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from lora_doctor.dry_run.acts import filled_labels, pairs
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.batch_rows import MOST_IDS, plain_rows
from lora_doctor.nn.copying import undisturbed

#: Rows of a set of token ids that are collated at most. Others may load a picture for each.
_ROWS = 256
_ROWS_OF_OTHERS = 16
#: Rows that are collated at once where the loader has no size of its own.
_BATCH = 8


class _Counts(Protocol):
    """Counts rows of the set beside the batch that was made of them."""

    def add(self, rows: Sequence[Any], batch: Mapping[str, Any]) -> None: ...


def tell(acting: Acting, loader: Any, model: Any = None) -> None:
    """Tell the token ids and labels that the collator makes of a sample of the set; nothing where
    the set cannot be asked for a row by its number. Nobody has called the collator with just these
    rows, so that an exception of it is not the user's."""
    data, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if not callable(collate) or not _has_rows(data) or acting.writes_its_rows:
        return
    size = getattr(loader, "batch_size", None) or _BATCH
    compared, filled = pairs.Compared(), filled_labels.Filled(model)
    with acting.ours(), undisturbed():
        try:
            batches = list(_batches(acting, data, collate, int(size), (compared, filled)))
        except Exception as error:  # noqa: BLE001 - code of the user's own
            acting.journal.tell("no_sampled_rows", reason=f"{type(error).__name__}: {error}"[:300])
            return
    for rows in batches:
        acting.journal.tell("sampled_rows", rows=rows)
    if compared.rows:
        acting.journal.tell("pairs", **vars(compared))
    if filled.short:
        acting.journal.tell("filled_labels", **filled.counted)


def _has_rows(data: Any) -> bool:
    return all(hasattr(type(data), name) for name in ("__len__", "__getitem__"))


def _batches(
    acting: Acting, data: Any, collate: Any, size: int, counted: tuple[_Counts, ...]
) -> Iterator[dict[str, list[Any]]]:
    length = len(data)
    numbers = random.Random(0).sample(range(length), min(length, 4 * _ROWS))
    first = data[numbers[0]] if numbers else None
    most = _ROWS if is_of_tokens(first) else min(_ROWS_OF_OTHERS, acting.rows)
    ids = 0
    for rows in _chunks(_distinct(data, numbers, most), size):
        batch = collate(rows)
        if not isinstance(batch, Mapping):
            return
        for one in counted:
            one.add(rows, batch)
        found = plain_rows(batch)
        ids += sum(len(line) for line in found.get("input_ids", ()))
        if "input_ids" not in found or ids > MOST_IDS:
            return
        yield found


def is_of_tokens(row: Any) -> bool:
    """Whether a row holds numbers alone, no pictures and no sound."""
    if not isinstance(row, Mapping):
        return False
    return "input_ids" in row and not any(
        name.startswith(("pixel", "image", "input_features", "audio")) for name in map(str, row)
    )


def _distinct(data: Any, numbers: list[int], most: int) -> Iterator[Any]:
    """So many rows, each once: a set that was cut repeats its few."""
    seen: set[str] = set()
    for number in numbers[: 4 * most]:
        row = data[number]
        mark = str(list(map(int, row["input_ids"]))) if is_of_tokens(row) else str(number)
        if mark not in seen:
            seen.add(mark)
            yield row
        if len(seen) >= most:
            return


def _chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    found: list[Any] = []
    for row in rows:
        found.append(row)
        if len(found) == size:
            yield found
            found = []
    if found:
        yield found
