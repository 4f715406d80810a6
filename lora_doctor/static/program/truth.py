"""Whether a value counts as true in a condition of the program."""

from __future__ import annotations

from lora_doctor.static.program.values import Items, Known, Mapping, Thing, Unknown, Value

#: Whose classes say nothing else of themselves in a condition: configs, arguments, trainers.
_LIBRARIES = ("transformers.", "peft.", "trl.")


def truth(value: Value) -> bool | None:
    """Whether the value counts as true; ``None`` where that is not known."""
    if isinstance(value, Known):
        return bool(value.value)
    if isinstance(value, Items):
        return bool(value.items) or (None if value.open else False)
    if isinstance(value, Mapping):
        return bool(value.entries) or (None if value.open else False)
    if isinstance(value, Thing):
        return True if is_model(value) or _is_made(value) else None
    return None if isinstance(value, Unknown) else True


def is_model(value: Thing) -> bool:
    """Whether it is a model that was loaded or adapted."""
    return value.call.method in ("from_pretrained", "get_peft_model")


def _is_made(value: Thing) -> bool:
    """Whether it is an object of a library's class, and not what a function returned."""
    return value.call.method[:1].isupper() and value.made_by.startswith(_LIBRARIES)
