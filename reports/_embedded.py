"""The diagnosis embedded in the page as JSON, cut where it would make the page too large."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_doctor.reports._text import plain, shorten

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis


class Embedded:
    """The diagnosis as JSON that cannot leave its script element.

    Stays valid against the schema when it must be cut: the module tree goes first, then long texts
    and lists; a note says so.
    """

    def __init__(self, diagnosis: Diagnosis) -> None:
        self._data = plain(diagnosis.to_json())
        self._cuts = [_whole, _without_structure, _with_short_texts, _without_details]
        self._text = self._written()

    def within(self, budget: int) -> Any:
        """The most complete text of at most ``budget`` bytes. Ask with falling budgets only."""
        while len(self._text) > budget and self._cuts:
            self._text = self._written()
        return self._text

    def _written(self) -> Any:
        from jinja2.utils import htmlsafe_json_dumps

        data = self._cuts.pop(0)(self._data)
        return htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False)


_ELIDED = {
    "kind": "cut",
    "text": "cut to keep the page small; --output-format json has everything",
    "reason": "",
}


def _whole(data: dict[str, Any]) -> dict[str, Any]:
    return data


def _without_structure(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "structure": None, "notes": [*data["notes"], _ELIDED]}


def _with_short_texts(data: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = _cut(_without_structure(data), 300, 12)
    return result


def _without_details(data: dict[str, Any]) -> dict[str, Any]:
    emptied: dict[str, Any] = {
        "findings": [],
        "remaining": None,
        "skipped": [],
        "applied": [],
        "passed": [],
    }
    short: dict[str, Any] = _cut({**_without_structure(data), **emptied}, 80, 4)
    return short


def _cut(value: Any, text: int, items: int) -> Any:
    if isinstance(value, str):
        return shorten(value, text)
    if isinstance(value, list):
        return [_cut(item, text, items) for item in value[:items]]
    if isinstance(value, dict):
        kept = list(value.items())[: max(items, 40)]
        return {shorten(key, text): _cut(item, text, items) for key, item in kept}
    return value
