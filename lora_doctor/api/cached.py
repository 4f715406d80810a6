"""``check`` with stored answers: the same question again takes no longer than depth ``static``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lora_doctor.api import rules_and_selection
from lora_doctor.api.cache_key import NotCachedError, key_of
from lora_doctor.api.cache_store import CacheStore, Stored
from lora_doctor.api.opening import open_case
from lora_doctor.api.options import DEFAULTS, CheckOptions
from lora_doctor.engine.case import Case
from lora_doctor.engine.diagnose import diagnose
from lora_doctor.errors import InputError
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.note import Note

#: What of a skipped rule is in the key, too, so that a change of it is seen.
_SEEN = (None, "package", "trust")


def check_with_cache(
    model: Any,
    recipe: Any,
    options: CheckOptions,
    store: CacheStore,
    tell: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """As :func:`lora_doctor.check`; an answer that is stored is taken, a new one stored. ``tell``
    is told why not.

    Raises:
        InputError: as :func:`lora_doctor.check`.
    """
    began = time.perf_counter()
    given: CheckOptions = {**DEFAULTS, **options}
    with open_case(model, recipe, options, eager=False) as case:
        key = _key(case, given, tell)
        stored = _stored(store, key, tell) if key is not None else None
        if stored is not None:
            # The rules are not even imported: the key has their files and which were selected.
            return _taken(stored, case, time.perf_counter() - began)
        case.start_child()
        found, selection = rules_and_selection(options)  # imported while the child imports
        diagnosis = diagnose(case, found, selection, strict=options.get("strict", False))
        # What was changed while it was looked at is not what the key says.
        if key is not None and _is_final(diagnosis) and key == _key(case, given, tell):
            store.put(key, diagnosis)
        return diagnosis


def _key(case: Case, options: CheckOptions, tell: Callable[[str], None]) -> str | None:
    try:
        return key_of(case, options)
    except NotCachedError as error:
        tell(f"not stored: {error}")
        return None


def _stored(store: CacheStore, key: str, tell: Callable[[str], None]) -> Stored | None:
    try:
        return store.get(key)
    except InputError as error:
        tell(str(error))
        return None


def _is_final(diagnosis: Diagnosis) -> bool:
    """Whether asking again could only give the same: no limit, no open question, nothing that a
    hub or an unreadable file has kept from us."""
    return (
        diagnosis.undetermined is None
        and diagnosis.limit is None
        and diagnosis.reached == diagnosis.depth
        and (diagnosis.before is None or diagnosis.before.as_answer().outcome != "undetermined")
        and all(item.remedy in _SEEN for item in diagnosis.skipped)
    )


def _taken(stored: Stored, case: Case, seconds: float) -> Diagnosis:
    """The stored answer, with what of the question is not stored with it."""
    diagnosis = stored.diagnosis
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.when))
    note = Note("cached", f"cached: this is the answer of {when}, which took "
                f"{diagnosis.seconds:.1f} s; --no-cache asks again")  # fmt: skip
    recipe = replace(diagnosis.recipe, file=case.asked.file, set_up=case.asked.set_up)
    return replace(
        diagnosis,
        model=case.source,
        recipe=recipe,
        seconds=seconds,
        notes=(*diagnosis.notes, note),
    )
