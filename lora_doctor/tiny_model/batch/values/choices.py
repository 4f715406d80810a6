"""Values of an argument that chooses between a few: which one fits a batch."""

from __future__ import annotations

import enum
import inspect
import re
import typing
from collections.abc import Iterable
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft

#: Words in names of modes, by the modality that they stand for.
_WORDS = {
    "text": r"text|language|lang|llm|lm",
    "image": r"image|img|vision|visual|picture",
    "audio": r"audio|speech|sound|voice",
    "video": r"video",
}


def fitting(values: Iterable[tuple[str, Any]], modalities: set[str]) -> tuple[str, Any]:
    """Of names and values the one whose name says what the batch has; else the first."""
    values = list(values)
    best = max(values, key=lambda item: _score(item[0], modalities))
    return best if _score(best[0], modalities) > 0 else values[0]


def annotated(draft: Draft, name: str) -> Any:
    """A member of the enum, or of the `Literal`, that an argument is annotated with; None where it
    is annotated otherwise."""
    for kind in _kinds(draft, name):
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and list(kind):
            return fitting([(member.name, member) for member in kind], draft.modalities)[1]
        if typing.get_origin(kind) is typing.Literal:
            listed = typing.get_args(kind)
            return fitting([(str(value), value) for value in listed], draft.modalities)[1]
    return None


def _kinds(draft: Draft, name: str) -> list[Any]:
    """The types that an argument may have by its annotation."""
    kind = draft.parameters[name].annotation
    if isinstance(kind, str):
        forward = inspect.unwrap(type(draft.model).forward)
        try:
            kind = eval(kind, dict(getattr(forward, "__globals__", {})))
        except Exception:  # noqa: BLE001 - names that exist for type checkers only
            return []
    inner = typing.get_args(kind)
    return [kind] if typing.get_origin(kind) is typing.Literal or not inner else list(inner)


def _score(name: str, modalities: set[str]) -> int:
    """How well a name says what is beside the text: "vision_speech" for image and audio."""
    said = {kind for kind, words in _WORDS.items() if re.search(rf"(?i)(^|_)({words})", name)}
    beside = modalities - {"text"}
    if said and said - {"text"} == beside:
        return 2
    return 1 if said & modalities else 0
