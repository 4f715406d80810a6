"""``datasets``: few rows are mapped and filtered, and a set keeps the length that it reports.

What comes out of a few rows is repeated to the length that the whole set would have: splits,
selections and step counts of the user's stay what they are. Batches are made of the few rows.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.call_sites import caller


def prepare(acting: Acting) -> None:
    """Once ``datasets`` is there."""
    acting.after("datasets.arrow_dataset", lambda module: _mapping(acting, module))
    acting.after("datasets.load", lambda module: _loading(acting, module))


def _mapping(acting: Acting, module: ModuleType) -> None:
    def mapped(original: Any, data: Any, *arguments: Any, **named: Any) -> Any:
        if acting.in_contract or len(data) <= acting.rows:
            return original(data, *arguments, **named)
        few = data.select(_sample(data, acting.rows), keep_in_memory=True)
        made = original(few, *arguments, **_in_memory(named))
        if len(made) == len(few):
            return _repeated(made, len(data))
        return _estimated(acting, "map", data, few, made)

    def filtered(original: Any, data: Any, *arguments: Any, **named: Any) -> Any:
        if acting.in_contract or len(data) <= acting.rows:
            return original(data, *arguments, **named)
        few = data.select(_sample(data, acting.rows), keep_in_memory=True)
        made = original(few, *arguments, **_in_memory(named))
        if not len(made):
            return original(data, *arguments, **named)  # what is rare is looked for in all rows
        if len(made) == len(few):
            return data
        return _estimated(acting, "filter", data, few, made)

    acting.replaced.around(module.Dataset, "map", mapped)
    acting.replaced.around(module.Dataset, "filter", filtered)


def _in_memory(named: dict[str, Any]) -> dict[str, Any]:
    """The same without caches and without processes, which few rows are not worth."""
    left_out = ("cache_file_name", "new_fingerprint", "num_proc", "load_from_cache_file")
    kept = {key: value for key, value in named.items() if key not in left_out}
    return {**kept, "keep_in_memory": True, "load_from_cache_file": False}


def _sample(data: Any, rows: int) -> list[int]:
    """Positions spread over the set; of a set that is repeated already, each row once."""
    import numpy

    first = numpy.arange(len(data))
    if data._indices is not None:
        held = data._indices.column(0).to_numpy()
        first = numpy.sort(numpy.unique(held, return_index=True)[1])
    if len(first) > rows:
        first = first[numpy.arange(rows) * len(first) // rows]
    return [int(position) for position in first]


def _repeated(made: Any, length: int) -> Any:
    import numpy

    if length == len(made) or not len(made):
        return made
    return made.select(numpy.arange(length) % len(made), keep_in_memory=True)


def _estimated(acting: Acting, name: str, data: Any, few: Any, made: Any) -> Any:
    length = max(1, round(len(data) * len(made) / len(few))) if len(made) else 0
    acting.note(
        "sampled",
        f"{name} left {len(made)} of {len(few)} rows; for {len(data)} rows that is about {length}",
    )
    return _repeated(made, length)


def _loading(acting: Acting, module: ModuleType) -> None:
    def load(original: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return original(*arguments, **named)
        except Exception as error:
            place = caller()
            acting.journal.tell(
                "no_data",
                name=str(arguments[0] if arguments else named.get("path", ""))[:200],
                reason=f"{type(error).__name__}: {error}"[:600],
                place=None if place is None else vars(place),
            )
            raise

    acting.replaced.around(module, "load_dataset", load)
