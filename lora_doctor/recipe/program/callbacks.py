"""Callbacks that a program gives its trainer."""

from __future__ import annotations

from lora_doctor.recipe.program.objects import is_none, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.program.values import Class, Instance, Items, Thing, Value

#: Whose callbacks are known to do what their documentation says.
_KNOWN = ("transformers", "trl", "peft", "lora_doctor")


def has_unread_callback(setup: Setup) -> bool:
    """Whether the trainer has a callback whose code is neither in the files of the program nor that
    of a known library."""
    trainer = setup.roles.trainer
    given = [] if trainer is None else [trainer.value("callbacks", 7)]
    for call in setup.program.calls:
        own = isinstance(call.receiver, Thing) and call.receiver.call is trainer
        if own and call.method == "add_callback":
            given.append(call.value("callback", 0))
    return not all(map(_is_read, given))


def _is_read(value: Value | None) -> bool:
    if isinstance(value, Items):
        return value.open is None and all(map(_is_read, value.items))
    if isinstance(value, Thing):
        return top(value.made_by) in _KNOWN
    return is_none(value) or isinstance(value, (Instance, Class))
