"""``datasets``: few rows are mapped and filtered, and a set keeps the length that it reports.

What comes out of a few rows is repeated to the length that the whole set would have: splits,
selections and step counts of the user's stay what they are. Batches are made of the few rows.
"""

from __future__ import annotations

import functools
import inspect
import threading
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import cache_files, cut_sets, set_aside
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.call_sites import is_of_user

#: A set of so many rows is filtered as a whole: what is left is then no estimate.
_WHOLE_ROWS = 20_000
#: A set of so many rows of text is mapped as a whole, a second at most: its length and its rows are
#: then the user's, also where samples are joined or cut.
_WHOLE_TEXTS = 1_000


def prepare(acting: Acting) -> None:
    """Once ``datasets`` is there."""
    acting.after("datasets.arrow_dataset", lambda module: _mapping(acting, module))
    acting.after("datasets.fingerprint", lambda module: _no_caches(acting, module))
    acting.after("datasets.iterable_dataset", lambda module: _streams(acting, module))


def _no_caches(acting: Acting, module: ModuleType) -> None:
    """Results of few rows are not kept, least of all beside the user's own set."""
    acting.replaced.around(module, "is_caching_enabled", lambda original: False)


def _streams(acting: Acting, module: ModuleType) -> None:
    """A buffer that is filled before the first row comes out is filled with few."""

    def shuffled(original: Any, data: Any, *arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(original).bind(data, *arguments, **named)
        bound.apply_defaults()
        asked = bound.arguments["buffer_size"]
        bound.arguments["buffer_size"] = min(asked, acting.rows)
        return original(*bound.args, **bound.kwargs)

    acting.replaced.around(module.IterableDataset, "shuffle", shuffled)


class _Whole:
    """Calls that go through as they are: what they call of the same kind (``filter`` calls ``map``)
    is not cut once more."""

    def __init__(self) -> None:
        self._inside = threading.local()

    @property
    def runs(self) -> bool:
        return bool(getattr(self._inside, "yes", False))

    def __call__(self, original: Any, data: Any, arguments: Any, named: Any) -> Any:
        before, self._inside.yes = self.runs, True
        try:
            return original(data, *arguments, **_in_memory(named))
        finally:
            self._inside.yes = before


def _mapping(acting: Acting, module: ModuleType) -> None:
    whole, files = _Whole(), cache_files.prepare(acting, module)

    def mapped(original: Any, data: Any, *arguments: Any, **named: Any) -> Any:
        if acting.in_contract or whole.runs:
            return original(data, *arguments, **named)
        made = of_few(original, data, arguments, named)
        files.keep(named, made)
        return made

    def of_few(original: Any, data: Any, arguments: Any, named: Any) -> Any:
        if len(data) <= acting.rows:
            return cut_sets.handed_on(data, whole(original, data, arguments, named))

        def mapping(some: Any) -> Any:
            return whole(original, some, arguments, named)

        few = data.select(_sample(data, acting.rows), keep_in_memory=True)
        made = mapping(few)
        if len(data) <= _WHOLE_TEXTS and not is_repeated(data) and _is_of_text(made):
            return cut_sets.handed_on(data, whole(original, data, arguments, named))
        if len(made) == len(few):
            found = repeated(made, len(data), of=data, acting=acting)
            set_aside.follow(acting, data, found, named, mapping)
            cut_sets.chosen_from(found, cut_sets.whole_of(data))
            return found
        return _estimated(acting, "map", data, few, made)

    def flattened(original: Any, data: Any, *arguments: Any, **named: Any) -> Any:
        """Rows in the order of their positions, by ``map``; ``add_column`` needs every one."""
        with acting.ours():
            return original(data, *arguments, **named)

    acting.replaced.around(module.Dataset, "map", mapped)
    acting.replaced.around(module.Dataset, "flatten_indices", flattened)
    acting.replaced.around(module.Dataset, "filter", _filtered(acting, whole))


def _filtered(acting: Acting, whole: _Whole) -> Any:
    def filtered(original: Any, data: Any, *arguments: Any, **named: Any) -> Any:
        if acting.in_contract:
            return original(data, *arguments, **named)
        few = data.select(_sample(data, acting.rows), keep_in_memory=True)
        every = len(few) == len(data) or not is_repeated(data)
        if every and len(data) <= max(_WHOLE_ROWS, acting.rows):
            left = whole(original, data, arguments, named)
            _tell_filtered(acting, arguments, named, len(data), len(left))
            return cut_sets.handed_on(data, left)

        def filtering(some: Any) -> Any:
            return whole(original, some, arguments, named)

        made = filtering(few)
        _tell_filtered(acting, arguments, named, len(few), len(made))
        if not len(made):  # what is rare is looked for in all rows
            return filtering(data)
        if len(made) < len(few):
            found = _estimated(acting, "filter", data, few, made)
            set_aside.follow(acting, data, found, named, filtering)
            return found
        set_aside.follow(acting, data, data, named, filtering)
        text = f"filter left all {len(few)} rows that were looked at, of {len(data)}"
        acting.note("not-proven", f"{text}; it was held to leave all")
        return data

    return filtered


def _tell_filtered(acting: Acting, arguments: Any, named: Any, before: int, after: int) -> None:
    """How many rows a filter left, and whose the filter is."""
    function = named.get("function", arguments[0] if arguments else None)
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    if code is None or is_of_user(code.co_filename):
        return
    acting.journal.tell(
        "filtered",
        before=before,
        after=after,
        by=f"{function.__module__}.{function.__qualname__}".replace(".<locals>.<lambda>", ""),
    )


def _is_of_text(made: Any) -> bool:
    """Whether no row holds bytes or lists of floats: images and sound take long to prepare."""
    from pyarrow import types

    def light(kind: Any, nested: bool = False) -> bool:
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            return light(kind.value_type, True)
        if types.is_struct(kind):
            fields = (kind.field(number).type for number in range(kind.num_fields))
            return all(light(one, nested) for one in fields)
        heavy = types.is_binary(kind) or types.is_large_binary(kind) or types.is_nested(kind)
        return not heavy and not (nested and types.is_floating(kind))

    return all(light(field.type) for field in made.features.arrow_schema)


def _in_memory(named: dict[str, Any]) -> dict[str, Any]:
    """The same without caches and without processes, which few rows are not worth."""
    left_out = ("cache_file_name", "new_fingerprint", "num_proc", "load_from_cache_file")
    kept = {key: value for key, value in named.items() if key not in left_out}
    return {**kept, "keep_in_memory": True, "load_from_cache_file": False}


def is_repeated(data: Any) -> bool:
    """Whether rows of a set stand in it more than once: only some of the user's were made."""
    import numpy

    if data._indices is None:
        return False
    return len(numpy.unique(data._indices.column(0).to_numpy())) < len(data)


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


def repeated(made: Any, length: int, of: Any = None, acting: Acting | None = None) -> Any:
    """The rows over and over, until they are so many. ``of``: the set that they were made from.
    ``acting`` is told, where it is given."""
    import numpy

    if length == len(made) or not len(made):
        return made
    cut_sets.remember(made, of)
    if acting is not None and not acting.seen("repeated"):
        acting.journal.tell("repeated", rows=len(made), length=length)
    return made.select(numpy.arange(length) % len(made), keep_in_memory=True)


def _estimated(acting: Acting, name: str, data: Any, few: Any, made: Any) -> Any:
    length = max(1, round(len(data) * len(made) / len(few))) if len(made) else 0
    acting.note(
        "estimated",
        f"{name} left {len(made)} of {len(few)} rows; for {len(data)} rows that is about {length}",
    )
    return repeated(made, length, of=data, acting=acting)
