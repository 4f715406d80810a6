"""A diagnosis of schema version 1, in the layout of version 2.

Version 1 wrote notes, entries that match nothing and the like as sentences; version 2 writes what
they mean. This is the one place where such a sentence is taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: Fields that have another name since.
_STRUCTURE = {"own_adapters": "built_in_adapters"}
_OBSERVATIONS = {"idle": "unused_adapters", "misfits": "non_linear_outputs"}
_READINGS = {"said": "warning", "passed_by": "bypassed", "put_out": "output"}
#: What the notes that tell of a gap in the verdict began with, and their kind.
_GAPS = {"no batch with ": "not-fed", "no adapters on ": "not-adapted"}


def from_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a version 1 file as version 2 has it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not what version 1 wrote.
    """
    runs = data["verification"]
    return {
        **data,
        "schema_version": "2",
        "notes": _notes(data["notes"]),
        "verification": {name: _maybe(_verification, run) for name, run in runs.items()},
        "structure": _maybe(_structure, data["structure"]),
        "memory_plan": _maybe(_with_notes, data["memory_plan"]),
        "findings": [_finding(one, _NOT_SAID) for one in data["findings"]],
        "remaining": _maybe(lambda left: [_finding(one, _NOT_SAID) for one in left],
                            data["remaining"]),
        "applied": [_fix(one, _ran(runs["after"])) for one in data["applied"]],
    }  # fmt: skip


#: Version 1 did not run the fixes that it showed, but for those that it applied.
_NOT_SAID = {"outcome": "not-executed", "detail": "lora-doctor ran fixes only when it applied them"}


def _finding(data: Mapping[str, Any], executed: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "fixes": [_fix(fix, executed) for fix in data["fixes"]]}


def _fix(data: Mapping[str, Any], executed: Mapping[str, Any]) -> dict[str, Any]:
    proven = executed["outcome"] == "passed" or data["safety"] != "safe"
    safety = data["safety"] if proven else "unproven"
    return {**data, "safety": safety, "executed": executed}


def _ran(after: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """How the applied fixes came out, by the run after them."""
    if after is None or after["outcome"] != "passed":
        return _NOT_SAID
    return {"outcome": "passed", "detail": "the training contract passed", "depth": after["depth"]}


def _maybe(change: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else change(value)


def _structure(data: Mapping[str, Any]) -> dict[str, Any]:
    errors = ("input_embeddings_error", "input_gradients_error")
    return {
        **_with_notes(_renamed(data, _STRUCTURE)),
        "injection": _injection(data["injection"]),
        **{key: _maybe(_error, data.get(key)) for key in errors},
    }


def _injection(data: Mapping[str, Any]) -> dict[str, Any]:
    unmatched = (text.partition(": ") for text in data["unmatched"])
    converted = (text.partition(" -> ") for text in data["converted"])
    saved, _, looked_for = data["not_reloaded_example"].partition(" -> ")
    return {
        **data,
        "unmatched": [{"key": key, "entry": entry} for key, _, entry in unmatched],
        "converted": [
            {"entry": entry, "parameters": names.split(", ")} for entry, _, names in converted
        ],
        "not_reloaded_example": {"saved": saved, "looked_for": looked_for} if saved else None,
    }


def _error(text: str) -> dict[str, Any]:
    """``Type: message``, where the type is a name."""
    kind, colon, message = text.partition(": ")
    named = bool(colon) and kind.replace(".", "").isidentifier()
    return {"type": kind, "message": message} if named else {"type": "", "message": text}


def _verification(data: Mapping[str, Any]) -> dict[str, Any]:
    seen = _with_notes(_renamed(data["observations"], _OBSERVATIONS))
    for name in ("attention", "instance_patches", "non_linear_outputs"):
        seen[name] = [_renamed(reading, _READINGS) for reading in seen[name]]
    batches = [_with_notes(batch) for batch in data["batches"]]
    return {**_with_notes(data), "batches": batches, "observations": seen}


def _renamed(data: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in data.items()}


def _with_notes(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "notes": _notes(data["notes"])}


def _notes(texts: list[str]) -> list[dict[str, Any]]:
    return [{"kind": _kind(text), "text": text} for text in texts]


def _kind(text: str) -> str:
    """The kind of a note by its words; those that tell of no gap are steps of the run."""
    for start, kind in _GAPS.items():
        if text.startswith(start):
            return kind
    return "not-proven" if "is not proven" in text else "step"
