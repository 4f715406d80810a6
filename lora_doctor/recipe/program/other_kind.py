"""The config of an adapter made one of another kind: ``PrefixTuningConfig(...)`` becomes
``LoraConfig(...)``, with the arguments that this one takes."""

from __future__ import annotations

from collections.abc import Sequence

from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.keys import ALIASES
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.splices import Splice, literal, rearranged
from lora_doctor.static.installed.peft_types import config_class_of


def of_other_kind(setup: Setup, edits: Sequence[Edit]) -> list[Splice] | None:
    """The pieces of text that these edits of the adapter replace, ``peft_type`` among them;
    ``None`` where the program has no place for them."""
    call = setup.parts.get("adapter")
    if call is None or call.node is None or not call.span.unit.editable or call.open is not None:
        return None
    wanted = {edit.key: edit.value for edit in edits}
    name = config_class_of(str(wanted.pop("peft_type")))
    if name is None or call.positional or any(one.unpacked for one in call.keywords.values()):
        return None
    if not call.method.endswith("Config"):  # Unsloth's get_peft_model takes no config
        return None
    from lora_doctor.recipe.program.imports import name_of  # brings libcst

    unit = call.span.unit
    written, more = name_of(setup.program, unit, "peft", name)
    there = {ALIASES.get(name, name): one for name, one in call.keywords.items()}
    gone = [there[key] for key, value in wanted.items() if value is REMOVE and key in there]
    changes: list[Splice] = [(unit.span(call.node.func), written), *more]
    new: dict[str, str] = {}
    for key, value in wanted.items():
        if value is REMOVE:
            continue
        if key not in there:
            new[key] = literal(value, call.span.text)
        elif setup.recipe.get(key) != value:
            changes.append((there[key].span, literal(value, there[key].span.text)))
    return [*changes, *rearranged(call, gone, new)]
