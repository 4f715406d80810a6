"""Values that come from the command in a shell file which starts the program, changed there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.program.setup import Setting, Setup
from lora_doctor.recipe.program.splices import Splice
from lora_doctor.recipe.written import Written
from lora_doctor.static.program.started import PlacedWord, Start
from lora_doctor.static.program.units import Span
from lora_doctor.static.program.values import Items, Known

_BOM = b"\xef\xbb\xbf"


def is_of_command(setup: Setup, span: Span | None) -> bool:
    """Whether a place is in the shell file that starts the program."""
    start = setup.program.start
    return start is not None and span is not None and span.unit.file == start.place.file


def in_command(setup: Setup, setting: Setting, value: Any) -> Splice | None:
    """The words of the command that give a key another value; ``None`` where its words are no plain
    ones, or there is no place for several."""
    found, between = setting.value, ""
    if isinstance(found, Items) and found.joined is not None:
        found, between = found.joined
    if not isinstance(found, (Known, Items)) or found.span is None:
        return None
    if not is_of_command(setup, found.span) or re.search(r"[$`\\]", found.span.text):
        return None
    reads = setup.program.reads or {}
    if any(reads.get(name, 0) > 1 for name in setting.value.via):
        return None  # others read it as well
    values = value if isinstance(value, list) else [value]
    if not values or not all(type(one) in (str, int, float) for one in values):
        return None
    texts = [str(one) for one in values]
    if between.strip():
        return found.span, _quoted(between.join(texts), found.span.text)
    if isinstance(found, Items) and not between:
        return found.span, " ".join(map(shlex.quote, texts))
    return (found.span, _quoted(texts[0], found.span.text)) if len(texts) == 1 else None


def _quoted(new: str, old: str) -> str:
    """The new word in the quotes of the old one, where that is the same word."""
    plain = re.fullmatch(r"[\w.,/:@%+=-]*", new)
    if plain and len(old) > 1 and old[0] == old[-1] and old[0] in "'\"":
        return f"{old[0]}{new}{old[0]}"
    return shlex.quote(new)


def edited_start(
    written: Written, changes: Sequence[Splice]
) -> tuple[tuple[str, ...], Start | None]:
    """The words of the command and the command itself after these changes of the shell file.

    Raises:
        InputError: two changes meet, or the command does not start the program any more.
    """
    start = written.start
    if start is None or not changes:
        return written.arguments, start
    text = start.data.decode("utf-8-sig")
    last = len(text)
    for span, new in sorted(changes, key=lambda one: one[0].start, reverse=True):
        if span.end > last:
            raise InputError(f"{start.place.file}: two changes meet; edit it by hand")
        text, last = text[: span.start] + new + text[span.end :], span.start
    bom = _BOM if start.data.startswith(_BOM) else b""
    found = start.reread(bom + text.encode("utf-8")) if start.reread is not None else None
    if found is None:
        raise InputError(f"{start.place.file}: cannot be edited in place; edit it by hand")
    own = [word for word in written.arguments if not isinstance(word, PlacedWord)]
    return (*found[0], *own), found[1]
