"""Whether a value counts as true in a condition of the program."""

from __future__ import annotations

from lora_doctor.static.program.values import Items, Known, Mapping, Thing, Unknown, Value


def truth(value: Value) -> bool | None:
    """Whether the value counts as true; ``None`` where that is not known."""
    if isinstance(value, Known):
        return bool(value.value)
    if isinstance(value, Items):
        return bool(value.items) or (None if value.open else False)
    if isinstance(value, Mapping):
        return bool(value.entries) or (None if value.open else False)
    if isinstance(value, Thing) and "." in value.made_by and not is_model(value):
        return None
    return None if isinstance(value, Unknown) else True


def is_model(value: Thing) -> bool:
    """Whether it is a model that was loaded or adapted."""
    return value.call.method in ("from_pretrained", "get_peft_model")
