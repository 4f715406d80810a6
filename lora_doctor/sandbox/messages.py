"""What the child says, checked before it is believed: model code runs in the same process, and can
write on any descriptor that it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

FailureKind = Literal["exception", "crash", "timeout", "memory", "protocol"]
_NUMBER = (int, float)
#: Kinds of message, what each holds and of which types that is.
_FIELDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "importing": {"name": (str,)},
    "ready": {"seconds": _NUMBER, "errors": (dict,)},
    "started": {"id": (int,), "pid": (int,)},
    "progress": {"id": (int,), "text": (str,)},
    "answer": {"id": (int,), "failure": (dict, type(None)), "seconds": _NUMBER, "peak": (int,)},
    "exited": {"id": (int,), "code": (int,), "peak": (int,), "processor": _NUMBER},
}


def checked(message: Any) -> dict[str, Any] | None:
    """The message when it is one of ours, whole and of the right types; else ``None``."""
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        return None
    fields = _FIELDS.get(message["kind"])
    if fields is None:
        return None
    for name, types in fields.items():
        value = message.get(name)
        if name not in message or not isinstance(value, types) or isinstance(value, bool):
            return None
    if message["kind"] == "answer" and not ("value" in message and _is_failure(message)):
        return None
    if message["kind"] == "ready" and not _texts(message["errors"]):
        return None
    if not _is_optional(message):
        return None
    return message if message["kind"] != "started" or message["pid"] > 1 else None


def _is_optional(message: Mapping[str, Any]) -> bool:
    """Whether what a message may also hold is right where it is there."""
    facts, ceiling = message.get("facts", {}), message.get("ceiling")
    return (
        isinstance(facts, dict)
        and _texts(facts)
        and (ceiling is None or (isinstance(ceiling, int) and not isinstance(ceiling, bool)))
    )


def _is_failure(message: Mapping[str, Any]) -> bool:
    failure = message["failure"]
    if failure is None:
        return True
    failure = dict(failure)
    cause = failure.pop("cause", None)
    needed, known = {"kind", "type", "message"}, {"kind", "type", "message", "traceback", "remedy"}
    return (
        needed <= failure.keys() <= known
        and _texts(failure)
        and failure["kind"] in get_args(FailureKind)
        and (cause is None or _is_cause(cause))
    )


def _is_cause(cause: Any) -> bool:
    return isinstance(cause, dict) and cause.keys() == {"type", "message"} and _texts(cause)


def _texts(mapping: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(item, str) for key, item in mapping.items())
