"""The saved adapter that a program loads: to merge it, to use it, or to train it further."""

from __future__ import annotations

import re
from pathlib import Path

from lora_doctor.recipe.program.objects import (
    Roles,
    class_of,
    is_none,
    is_optimizer,
    is_saved_adapter,
    text_of,
    top,
)
from lora_doctor.recipe.program.setup import NamedAdapter, Setup
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.values import Argument, Call, Known, Unknown, Value

#: The attribute of an adapter's config in which its base model is named.
_BASE = ".base_model_name_or_path"
#: What makes dtypes alike.
_CASTS = re.compile(r"\bautocast\b|\.(?:half|bfloat16|float)\(\)|\.to\((?:dtype=)?torch\.\w+")


def named_adapter(program: Program, roles: Roles) -> tuple[NamedAdapter | None, Unknown | None]:
    """The saved adapter around the model of a program, and what is not known of where it is;
    neither for a program that puts a new adapter on, or none."""
    if roles.wrapper is None or not is_saved_adapter(roles.wrapper):
        return None, None
    call = _not_made_here(program, roles.wrapper)
    argument = _named(call)
    name = text_of(argument.value) if argument is not None else None
    if argument is None or name is None:
        value = argument.value if argument is not None else None
        return None, value if isinstance(value, Unknown) else None
    subfolder = call.value("subfolder")
    if not is_none(subfolder):
        if not isinstance(subfolder, Known):
            return None, subfolder if isinstance(subfolder, Unknown) else None
        name = f"{name}/{subfolder.value}"
    return NamedAdapter(name, argument.span.place, _trains(program, roles)), None


def base_of_config(program: Program, value: Value) -> str | None:
    """The adapter whose config names the model: ``config.base_model_name_or_path`` of the only
    ``PeftConfig.from_pretrained`` in the program."""
    if not isinstance(value, Unknown) or not value.code.endswith(_BASE):
        return None
    names = {
        text_of(call.value("pretrained_model_name_or_path", 0))
        for call in program.calls
        if call.method == "from_pretrained" and top(call.name) == "peft"
        and class_of(call).endswith("Config")
    }  # fmt: skip
    return names.pop() if len(names) == 1 else None


def loaded_sparingly(setup: Setup) -> Call | None:
    """``PeftModel.from_pretrained(base, adapter, low_cpu_mem_usage=True)`` of the adapter that the
    program begins with; AutoPeftModel hands the argument to the base model. Not where the program
    casts models, or runs them under autocast."""
    if any(_CASTS.search(unit.python) for unit in setup.program.units):
        return None
    named = setup.saved_adapter
    for call in setup.program.calls:
        argument = _named(call) if is_saved_adapter(call) and "Auto" not in class_of(call) else None
        if named is None or argument is None or argument.span.place != named.place:
            continue
        sparing = call.value("low_cpu_mem_usage")
        if call.certain and isinstance(sparing, Known) and sparing.value is True:
            return call
    return None


def _not_made_here(program: Program, call: Call) -> Call:
    """The saved adapter that the program begins with, where this one is loaded from what the
    program saves itself, to try it."""
    saved = [text_of(one.value("save_directory", 0)) for one in program.calls
             if one.method == "save_pretrained"]  # fmt: skip
    outputs = [Path(one) for one in saved if one is not None]
    for one in (call, *reversed(program.calls)):
        argument = _named(one) if is_saved_adapter(one) and one.certain else None
        name = text_of(argument.value) if argument is not None else None
        own = name is not None and any(
            output == Path(name) or output in Path(name).parents for output in outputs
        )
        if name is not None and not own:
            return one
    return call


def _named(call: Call) -> Argument | None:
    if "Auto" in class_of(call):
        return call.argument("pretrained_model_name_or_path", 0)
    return call.argument("model_id", 1)


def _trains(program: Program, roles: Roles) -> bool:
    """Whether something in the program trains, by a trainer or by steps of its own."""
    return (
        roles.trainer is not None
        or any(is_optimizer(call) for call in program.calls)
        or any(".backward(" in unit.python for unit in program.units)
    )
