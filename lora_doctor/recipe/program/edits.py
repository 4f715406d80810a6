"""Edits of a recipe, made in the script or notebook that holds it."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import REMOVE, Edit, Rewrite
from lora_doctor.recipe.keys import ADAPTER_KEYS, ALIASES, BY_NAME, check_value
from lora_doctor.recipe.normal_forms import dtype
from lora_doctor.recipe.program.command_edits import edited_start, in_command, is_of_command
from lora_doctor.recipe.program.other_kind import of_other_kind
from lora_doctor.recipe.program.read_setup import read_setup, setup_of
from lora_doctor.recipe.program.setup import Setting, Setup
from lora_doctor.recipe.program.splices import Splice, added, list_changed, literal, removed
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.static.program.imported_by import may_edit
from lora_doctor.static.program.units import Span
from lora_doctor.static.program.values import OPTION, Call, Items, Known, Reference


class CannotEditError(Exception):
    """The program has no place for an edit."""


def program_holds(recipe: Recipe, edit: Edit) -> bool:
    """Whether the program has a place for the key and a spelling for the value."""
    setup = setup_of(recipe)
    if setup is None:
        return False
    try:
        _splices(setup, edit)
        return True
    except CannotEditError:
        return False


def edited_program(
    recipe: Recipe, edits: Iterable[Edit], rewrites: Iterable[Rewrite] = ()
) -> Recipe:
    """The recipe read again from the program after these edits; its ``written.data`` are the new
    bytes. Edits that the program has no place for are left out.

    Raises:
        InputError: the edits cannot be made in the place where the values stand, or the program
            does not compile or does not say what was meant after them.
    """
    setup = setup_of(recipe)
    assert setup is not None and recipe.written is not None and recipe.file is not None
    held = [edit for edit in edits if program_holds(recipe, edit)]
    changes = _all_splices(setup, held)
    changes += [_located(setup, rewrite) for rewrite in rewrites]
    unique = [change for n, change in enumerate(changes) if change not in changes[:n]]
    of_command = [change for change in unique if is_of_command(setup, change[0])]
    data, beside = setup.program.with_changes([one for one in unique if one not in of_command])
    arguments, start = edited_start(recipe.written, of_command)
    try:
        after = read_setup(recipe.file, data, arguments, start, beside)
    except InputError as error:  # of what was written here: not for the user to mend
        raise _cannot(recipe, held) from error
    _compiles(after)
    edited = {edit.key for edit in held}
    given = {
        key: recipe.values[key]
        for key, origin in recipe.origins.items()
        if origin != "file" and key not in edited
    }
    found = after.recipe
    for key, value in given.items():
        if key not in found.values or recipe.origins[key] == "option":
            found = found.override({key: value}, recipe.origins[key])
    expected = {
        key: value
        for key, value in found.edit(held).values.items()
        if value is not None or key in found.values  # an argument that is None is no key
    }
    if json.dumps(expected, sort_keys=True, default=str) != json.dumps(
        dict(found.values), sort_keys=True, default=str
    ):
        raise _cannot(recipe, held)
    fixed = {
        edit.key: found.values.get(edit.key)
        for edit in held
        if edit.key in found.values or edit.value is None
    }
    return found.override(fixed, "fix")


def _cannot(recipe: Recipe, edits: Sequence[Edit]) -> InputError:
    keys = ", ".join(edit.key for edit in edits)
    return InputError(f"{recipe.file}: {keys} cannot be edited in place; edit it by hand")


def _compiles(setup: Setup) -> None:
    """Raises InputError where a unit of the program is not Python any more."""
    for unit in (*setup.program.units, *setup.program.imported):
        if unit.python.strip() or not setup.program.cells:
            try:
                compile(unit.python, unit.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True)
            except (SyntaxError, ValueError) as error:
                raise InputError(f"{unit.name}: would not compile after the fix: {error}") from None


def _located(setup: Setup, rewrite: Rewrite) -> Splice:
    """The piece of text that a rewrite replaces, where it still stands there."""
    for unit in setup.program.units:
        if unit.cell == rewrite.cell:
            span = Span(unit, rewrite.start, rewrite.end)
            if span.text == rewrite.old:
                return span, rewrite.new
    raise InputError(
        f"{setup.program.path}: changed at the place of a fix while the run was going on; run it "
        "again"
    )


def _part_of(key: str) -> str:
    known = BY_NAME.get(key)
    return known.part if known is not None else "adapter"


def _all_splices(setup: Setup, edits: Sequence[Edit]) -> list[Splice]:
    """What several edits replace: those that make another kind of adapter are one change."""
    kinds = [edit for edit in edits if edit.key == "peft_type"]
    together = [edit for edit in edits if kinds and _part_of(edit.key) == "adapter"]
    changes = of_other_kind(setup, together) if together else []
    if changes is None:
        raise InputError(f"{setup.program.path}: peft_type cannot be edited there; edit it by hand")
    apart = [edit for edit in edits if edit not in together]
    return [*changes, *(change for edit in apart for change in _splices(setup, edit))]


def _splices(setup: Setup, edit: Edit) -> list[Splice]:
    """The pieces of text that an edit replaces.

    Raises:
        CannotEditError: there is no place for it.
    """
    setting = setup.settings.get(edit.key)
    if edit.key == "peft_type":
        found = of_other_kind(setup, [edit])
        if found is None:
            raise CannotEditError
        return found
    if edit.value is REMOVE:
        return _without(setup, edit.key, setting)
    value = check_value(edit.key, edit.value, "fix")
    if setting is None:
        return _new(setup, edit.key, value)
    if setup.recipe.get(edit.key) == value:
        return []
    if isinstance(setting.value, Items) and isinstance(value, list) and _is_own(setup, setting):
        changes = list_changed(setting.value, value)
        if changes is not None:
            return changes
    joined = _joined(setup, setting, value)
    if joined is not None:
        return [joined]
    of_command = in_command(setup, setting, value)
    if of_command is not None:
        return [of_command]
    span = _editable(setup, setting)
    old = span.text
    text, more = _text(setup, edit.key, value, setting, old)
    return [(span, text), *more]


def _without(setup: Setup, key: str, setting: Setting | None) -> list[Splice]:
    if setting is None:
        return []
    if setting.argument is None or setting.argument.unpacked or setting.call is None:
        raise CannotEditError
    found = removed(setting.call, setting.argument)
    if found is None or not may_edit(setup.program, found[0].unit):
        raise CannotEditError
    return [found]


def _joined(setup: Setup, setting: Setting, value: Any) -> Splice | None:
    """The text of which the program splits a list, with other names in it."""
    found = setting.value
    if not isinstance(found, Items) or found.joined is None or not isinstance(value, list):
        return None
    text, between = found.joined
    parts = [item.value if isinstance(item, Known) else None for item in found.items]
    if parts != str(text.value).split(None if between == " " else between):
        return None  # changed since
    written = Setting(text, setting.argument, setting.call)
    if not value or text.span is None or not _is_own(setup, written):
        return None
    if any(not isinstance(name, str) or between in name for name in value):
        return None
    return text.span, literal(between.join(value), text.span.text)


def _is_own(setup: Setup, setting: Setting) -> bool:
    """Whether the literal is read by nobody else, and stands in the program or in a file that only
    the program imports. Whatever reads an option follows it, as it does on the command line."""
    span = setting.value.span
    if span is None or not may_edit(setup.program, span.unit):
        return False
    reads = setup.program.reads if span.unit.editable else setup.program.all_reads
    names = setting.value.via
    option = next((n for n, name in enumerate(names) if name.startswith(OPTION)), len(names))
    return all((reads or {}).get(name, 0) <= 1 for name in names[:option])


def _editable(setup: Setup, setting: Setting) -> Span:
    """The literal where nobody else reads it, else the argument in the call."""
    literal_span = setting.value.span
    if literal_span is not None and _is_own(setup, setting):
        return literal_span
    argument = setting.argument
    if is_of_command(setup, literal_span or _of_words(setting)):
        raise CannotEditError  # the command that starts the program would go on to say otherwise
    if argument is None or argument.unpacked:
        raise CannotEditError
    if not may_edit(setup.program, argument.span.unit):
        raise CannotEditError
    return argument.span


def _of_words(setting: Setting) -> Span | None:
    """Where the first item of a list stands, or the text that it was split from."""
    found = setting.value
    if not isinstance(found, Items):
        return None
    whole = found.joined[0].span if found.joined is not None else None
    return whole or next((item.span for item in found.items), None)


def _new(setup: Setup, key: str, value: Any) -> list[Splice]:
    """A key that the program does not set: an argument more of the call that takes it."""
    part = _part_of(key)
    call = setup.parts.get(part)
    if part == "quantization" and call is None:
        return _new_quantization(setup, key, value)
    if call is None or not may_edit(setup.program, call.span.unit) or call.node is None:
        raise CannotEditError
    if part == "adapter" and key not in ADAPTER_KEYS and key in ("peft_type", "task_type"):
        raise CannotEditError
    if key in ("model_class", "peft_type") or not _takes(call, key):
        raise CannotEditError
    text, more = _text(setup, key, value, None, call.span.text)
    return [_given(setup, call, key, _name(key, call), text), *more]


def _given(setup: Setup, call: Call, key: str, name: str, text: str) -> Splice:
    """An argument more, or in the place of the one that has this name and sets nothing: ``None``,
    which is why the recipe lacks the key. A second one would be a syntax error.

    Raises:
        CannotEditError: there is no place, or what the argument holds was not found out.
    """
    there = [one for other, one in call.keywords.items() if ALIASES.get(other, other) == key]
    if not there:
        found = added(call, name, text)
        if found is None:
            raise CannotEditError
        return found
    if not isinstance(there[0].value, Known):
        raise CannotEditError
    return _editable(setup, Setting(there[0].value, there[0], call)), text


def _takes(call: Call, key: str) -> bool:
    """Keys of TRL and of planning are no arguments of transformers' own class."""
    if _part_of(key) in ("data", "planning"):
        return "Config" in call.method
    return True


def _name(key: str, call: Call) -> str:
    """The key as new code of the installed transformers spells it."""
    return "torch_dtype" if key == "dtype" and not _knows_dtype() else key


@functools.cache
def _knows_dtype() -> bool:
    from lora_doctor.static.installed.environment import installed_text, package_folder

    folder = package_folder("transformers")
    text = installed_text(folder / "modeling_utils.py") if folder is not None else ""
    return 'kwargs.pop("dtype"' in text


def _new_quantization(setup: Setup, key: str, value: Any) -> list[Splice]:
    loader = setup.parts.get("loading")
    if loader is None or loader.node is None or not may_edit(setup.program, loader.span.unit):
        raise CannotEditError
    if key not in ("load_in_4bit", "load_in_8bit") or value is not True:
        raise CannotEditError
    from lora_doctor.recipe.program.imports import name_of  # brings libcst

    name, more = name_of(setup.program, loader.span.unit, "transformers", "BitsAndBytesConfig")
    place = _given(
        setup, loader, "quantization_config", "quantization_config", f"{name}({key}=True)"
    )
    return [place, *more]


def _text(
    setup: Setup, key: str, value: Any, setting: Setting | None, old: str
) -> tuple[str, list[Splice]]:
    """The value as the program would write it, and the imports that it needs."""
    known = BY_NAME.get(key)
    before = setting.value if setting is not None else None
    if known is not None and known.normal_form is dtype and value != "auto":
        if isinstance(before, Known) and isinstance(before.value, str):
            return literal(value, old), []
        unit = _unit_of(setup, setting, key)
        from lora_doctor.recipe.program.imports import name_of  # brings libcst

        name, more = name_of(setup.program, unit, "", "torch")
        return f"{name}.{value}", more
    is_member = isinstance(before, Reference) and key in ("task_type", "peft_type") and "." in old
    if is_member and value is not None:
        return f"{old.rpartition('.')[0]}.{value}", []
    return literal(value, old), []


def _unit_of(setup: Setup, setting: Setting | None, key: str) -> Any:
    call = setting.call if setting is not None and setting.call else setup.parts.get(_part_of(key))
    if call is None:
        raise CannotEditError
    return call.span.unit
