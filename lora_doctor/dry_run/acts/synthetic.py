"""Rows made up from the features that a data set declares, where the set itself cannot be had.

Columns get values of the declared types; messages get roles that templates take. Nothing about
labels, lengths or texts of the real rows follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog")
#: Items of a list whose length is not declared, and of one of texts or images.
_ITEMS, _FEW = 12, 2
#: Sides of a made-up image, and samples of a made-up second of sound.
_PIXELS, _SAMPLES = 64, 16_000
_ROLES = (("role", "content", "user", "assistant"), ("from", "value", "human", "gpt"))
#: Columns that hold the one side of a conversation only.
_PROMPTS = ("prompt", "question", "instruction")
_ANSWERS = ("completion", "answer", "response")


class NotMadeError(Exception):
    """A feature of a kind that nothing can be made up for."""


def made_rows(features: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """So many rows.

    Raises:
        NotMadeError: a feature is of a kind that is not known here.
    """
    return [
        {name: _value(feature, number, name) for name, feature in features.items()}
        for number in range(count)
    ]


def _value(feature: Any, number: int, name: str) -> Any:
    if isinstance(feature, Mapping):
        return {key: _value(one, number, key) for key, one in feature.items()}
    if isinstance(feature, (list, tuple)):
        return _items(feature[0], None, number, name)
    kind = type(feature).__name__
    if kind in ("Sequence", "List", "LargeList"):
        return _items(feature.feature, getattr(feature, "length", None), number, name)
    if kind == "Value":
        return _plain(str(feature.dtype), number, name)
    if kind == "ClassLabel":
        return number % max(1, feature.num_classes or 1)
    if kind == "Image":
        return _image(number)
    if kind == "Audio":
        return _sound(feature)
    if kind == "Translation":
        return {language: _text(number) for language in feature.languages}
    if kind.startswith("Array"):
        return _array([side or 4 for side in feature.shape])
    raise NotMadeError(f"column {name!r} is a {kind}, for which no rows are made up")


def _items(feature: Any, length: int | None, number: int, name: str) -> list[Any]:
    if isinstance(feature, Mapping):
        for role, content, user, assistant in _ROLES:
            if role in feature and content in feature:
                turns = [user, assistant]
                if name in _PROMPTS:
                    turns = [user]
                elif name in _ANSWERS:
                    turns = [assistant]
                return [{**_value(feature, number, name), role: turn} for turn in turns]
    count = length if length and length > 0 else _count_of(feature)
    return [_value(feature, number + place, name) for place in range(count)]


def _count_of(feature: Any) -> int:
    plain = type(feature).__name__ == "Value" and "string" not in str(feature.dtype)
    return _ITEMS if plain or type(feature).__name__ == "ClassLabel" else _FEW


def _plain(dtype: str, number: int, name: str) -> Any:
    if "string" in dtype:
        return _text(number)
    if dtype == "bool":
        return number % 2 == 0
    if dtype.startswith(("int", "uint")):
        if "mask" in name:
            return 1
        return number % 2 if "label" in name else number % 40 + 5
    if dtype.startswith(("float", "double", "decimal")):
        return number % 10 / 10
    if dtype.startswith(("timestamp", "date", "time")):
        import datetime

        return datetime.datetime(2024, 1, 1 + number % 28)
    if "binary" in dtype:
        return b"\x00"
    if dtype == "null":
        return None
    raise NotMadeError(f"column {name!r} has the type {dtype}, for which no rows are made up")


def _text(number: int) -> str:
    return f"{number} " + " ".join(_WORDS[: 3 + number % (len(_WORDS) - 2)])


def _image(number: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (_PIXELS, _PIXELS), (number * 37 % 256, number * 91 % 256, 128))


def _sound(feature: Any) -> dict[str, Any]:
    import numpy

    rate = feature.sampling_rate or _SAMPLES
    return {"array": numpy.sin(numpy.arange(rate) / 10).astype("float32"), "sampling_rate": rate}


def _array(shape: list[int]) -> Any:
    import numpy

    return numpy.zeros(shape).tolist()
