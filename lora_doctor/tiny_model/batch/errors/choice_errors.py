"""Arguments that choose between a few values: the members of an enum, the keys of a table, or a
list in the message.

`InputMode(None)` raises "None is not a valid InputMode"; the class, a table or a list of values is
in the frames that raised. Which value is right is by its suffix where that is the name of a
modality; otherwise each is tried once.
"""

from __future__ import annotations

import enum
import re
import traceback
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.errors.raised import Raised
from lora_doctor.tiny_model.batch.values.choices import fitting
from lora_doctor.tiny_model.batch.values.makers import MAKERS

_NOT_A_MEMBER = re.compile(r"is not a valid (?:[\w.]+\.)?(\w+)$")
_LISTED = re.compile(
    r"one of|must be|should be|expected|choose|chosen|available|allowed|supported|valid|known"
)
_QUOTED = re.compile(r"""['"`]([\w./:-]+)['"`]""")


def choice(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """A value for an argument that has to be one of a few."""
    for name, values in _asked(draft, inputs, raised):
        tried = draft.tried_choices.setdefault(name, [])
        left = [item for item in values if item[1] not in tried]
        if not left:
            continue
        label, value = fitting(left, draft.modalities)
        tried.append(value)
        draft.extra[name] = value
        return f"{name}={label}"
    return ""


def _asked(
    draft: Draft, inputs: dict[str, Any], raised: Raised
) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Arguments that were refused, each with the values that it may have and their names."""
    frames = [frame for frame, _ in traceback.walk_tb(raised.exception.__traceback__)]
    lines = [item.line or "" for item in traceback.extract_tb(raised.exception.__traceback__)]
    for frame, line in reversed(list(zip(frames, lines, strict=True))):
        names = [name for name in re.findall(r"\w+", line) if _is_free(draft, inputs, name)]
        values = _values(frame, line, raised)
        for name in dict.fromkeys(names):
            if values:
                yield name, values
    listed = [item for item in _listed(raised.text) if item[0] not in draft.parameters]
    for name in dict.fromkeys(re.findall(r"\w+", raised.text)):
        if len(listed) > 1 and _is_free(draft, inputs, name):
            yield name, listed


def _is_free(draft: Draft, inputs: dict[str, Any], name: str) -> bool:
    """Whether this is an argument of forward that has no value, or one of this module's."""
    parameter = draft.parameters.get(name)
    if parameter is None or name in MAKERS or "Tensor" in str(parameter.annotation):
        return False
    return name not in inputs or name in draft.tried_choices


def _values(frame: FrameType, line: str, raised: Raised) -> list[tuple[str, Any]]:
    """What the line of a frame chooses from: an enum that it calls, a table that it looks into, or
    what the message lists."""
    missing = _NOT_A_MEMBER.search(raised.text)
    if isinstance(raised.exception, ValueError) and missing is not None:
        found = {**frame.f_globals, **frame.f_locals}.get(missing[1])
        if isinstance(found, type) and issubclass(found, enum.Enum):
            return [(member.name, member.value) for member in found]
    if isinstance(raised.exception, KeyError):
        for owner in re.findall(r"([\w.]+)\[", line):
            table = _looked_up(frame, owner)
            if isinstance(table, Mapping):
                return [(str(key), key) for key in table if isinstance(key, (str, int))]
    return []


def _looked_up(frame: FrameType, dotted: str) -> Any:
    first, *rest = dotted.split(".")
    found: Any = {**frame.f_globals, **frame.f_locals}.get(first)
    for part in rest:
        found = getattr(found, part, None)
    return found


def _listed(text: str) -> list[tuple[str, Any]]:
    """Values between quotation marks, behind words that say that one of them is wanted."""
    start = _LISTED.search(text)
    found = _QUOTED.findall(text[start.start() :]) if start is not None else []
    return [(value, value) for value in dict.fromkeys(found)]
