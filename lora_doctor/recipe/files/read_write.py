"""Readers and writers of the files in which people keep their recipe.

Two layers. The *syntax* (``json_syntax``, ``yaml_syntax``) knows bytes and spans; the *format*
(a file in ``formats/``) knows how the keys of a recipe are spelled.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.files import replace_file
from lora_doctor.recipe.edit import Edit, Rewrite
from lora_doctor.recipe.files import yaml_syntax
from lora_doctor.recipe.files.bytes import FileText, decode, read_bytes
from lora_doctor.recipe.files.document import read_document
from lora_doctor.recipe.files.format import RecipeFormat, format_named
from lora_doctor.recipe.files.plain import plain
from lora_doctor.recipe.files.started_script import sets_up, started_script
from lora_doctor.recipe.keys import ADAPTER_KEYS, OUTER_KEYS, check_value
from lora_doctor.recipe.program.edits import edited_program, program_holds
from lora_doctor.recipe.program.read_setup import read_program_recipe
from lora_doctor.recipe.program.setup import is_program
from lora_doctor.recipe.recipe import Recipe, make_recipe
from lora_doctor.text import printable

__all__ = [
    "apply_edits",
    "as_recipe",
    "as_written",
    "edited_files",
    "edited_text",
    "held_files",
    "holds_edit",
    "new_recipe_text",
    "read_recipe",
    "recipe_diff",
    "write_edits",
]

#: The content of a file, or of each file of a set-up, when it was read.
Held = bytes | Mapping[Path, bytes]


def read_recipe(path: str | Path, format: str | None = None) -> Recipe:
    """The recipe in a file: an ``adapter_config.json``, our YAML or JSON recipe file, the file of a
    training framework, or a shell script that starts one.

    ``format``: its name, where the content does not decide it.

    Raises:
        InputError: the file cannot be read or is no recipe; one line with the path and, for
            syntax errors, the line.
    """
    path = Path(path)
    if is_program(path):
        return read_program_recipe(path)
    started = started_script(path) if format is None else None
    if started is not None and sets_up(started):
        return read_program_recipe(started.script, started.arguments, started.start)
    return replace(read_document(path, format=_format(format)).read(), file=path)


def holds_edit(path: Path, data: Held, edit: Edit, format: str | None = None) -> bool:
    """Whether the format of this file has a place for the key, and a spelling for the value.
    ``data``: the content of the file, or of each file of the set-up, when it was read.

    An ``adapter_config.json`` has none for loading and training keys (``dtype``,
    ``load_in_4bit``): those edits go into the prescription only.
    """
    return read_document(path, _held(path, data), _format(format)).holds(edit)


def edited_text(path: Path, data: bytes, edits: Iterable[Edit]) -> FileText:
    """The file after the edits, out of the content that it had when it was read; nothing is read
    or written. Raises as :func:`write_edits`."""
    return edited_files(path, data, edits).get(path, decode(path, data))


def edited_files(
    path: Path, data: Held, edits: Iterable[Edit], format: str | None = None
) -> dict[Path, FileText]:
    """The files of the set-up that the edits change, as :func:`edited_text`."""
    document = read_document(path, _held(path, data), _format(format))
    return document.edited(list(edits))


def held_files(path: Path, format: str | None = None) -> dict[Path, bytes]:
    """The content of the file, and of those of its set-up that it names.

    Raises:
        InputError: it cannot be read.
    """
    data = read_bytes(path)
    if is_program(path):
        return {path: data}
    try:
        parts = read_document(path, {path: data}, _format(format)).parts
    except InputError:
        return {path: data}  # reading the recipe says what is wrong
    return {path: data, **{part.path: part.file.encode(part.file.text) for part in parts}}


def _held(path: Path, data: Held) -> Mapping[Path, bytes]:
    return data if isinstance(data, Mapping) else {path: data}


def write_edits(path: str | Path, edits: Iterable[Edit]) -> str:
    """The text of the file after the edits; nothing is written.

    Whatever is not touched stays as it is: comments, order, quotes, indentation, line ends, and
    the name under which the file has a key (``torch_dtype``). A value that is there already leaves
    the text alone, so a second run changes nothing.

    Raises:
        InputError: the file is no recipe, has no place for a key, or is laid out in a way that
            is not edited in place.
    """
    path = Path(path)
    data = read_bytes(path)
    return edited_text(path, data, edits).text


def apply_edits(path: str | Path, edits: Iterable[Edit]) -> Path | None:
    """Write the edits into the file, at once, and keep the old one.

    Returns:
        The path of the backup (``NAME.bak``, numbered if an older, different one is there), or
        ``None`` when the file had these values already and was not touched.

    Raises:
        InputError: as :func:`write_edits`, or the file cannot be written; it is unchanged then.
    """
    path = Path(path)
    data = read_bytes(path)
    edited = edited_files(path, data, edits)
    if path not in edited:
        return None
    return replace_file(path, edited[path].encode(edited[path].text))


def recipe_diff(name: str | Path, old_text: str, new_text: str) -> str:
    """A unified diff of two texts of one file; empty when they are equal."""
    lines = difflib.unified_diff(
        old_text.splitlines(keepends=True),
        new_text.splitlines(keepends=True),
        str(name),
        f"{name} (fixed)",
    )
    marked = (
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )
    return "".join(marked)


def new_recipe_text(recipe: Recipe, comment: str = "") -> str:
    """A YAML recipe file with the values that are set, and a word on those the user did not set.

    Raises:
        InputError: a value cannot be written into a file (a live object of the Python API).
    """
    notes = {"proposed": "proposed by lora-doctor", "fix": "fixed by lora-doctor"}
    lines = [f"# {printable(line)}".rstrip() for line in comment.splitlines()]
    order = [*ADAPTER_KEYS, *OUTER_KEYS]
    rank = {key: number for number, key in enumerate(order)}
    for key in sorted(recipe.values, key=lambda name: rank.get(name, len(rank))):
        value = plain(recipe.values[key], f"recipe: {key}")
        note = notes.get(recipe.origins.get(key, ""))
        line = f"{yaml_syntax.dump(key)}: {yaml_syntax.dump(value)}"
        tail: list[str] = []
        if isinstance(value, list) and len(line) > 88:
            line = f"{yaml_syntax.dump(key)}:"
            tail = [f"  - {yaml_syntax.dump(item)}" for item in value]
        lines += [line + (f"  # {note}" if note else ""), *tail]
    if not recipe.values:
        lines.append("{}")
    return "\n".join(lines) + "\n"


def as_written(recipe: Recipe, edits: Iterable[Edit], rewrites: Iterable[Rewrite] = ()) -> Recipe:
    """The recipe after the edits, as it is read back from the file that they would be written to:
    the user's own, or a new recipe file. Nothing is written. ``rewrites``: of a program.

    Raises:
        InputError: it cannot be written there.
    """
    edits = list(edits)
    if recipe.written is not None:
        outside = [edit for edit in edits if not program_holds(recipe, edit)]
        return edited_program(recipe, edits, rewrites).edit(outside)
    edited = recipe.edit(edits)
    if recipe.file is not None:
        document = read_document(recipe.file, format=_format_in(recipe))
        document.edited([edit for edit in edits if document.holds(edit)])  # which reads it again
        return edited
    text = new_recipe_text(edited)
    read = read_document(_NEW, {_NEW: text.encode("utf-8")}).read()
    return replace(edited, values=read.values)


def without_place(recipe: Recipe, edits: Iterable[Edit]) -> list[str]:
    """Keys of edits that the file of the recipe has no place for: they go into the prescription.
    Those whose value follows from the other edits (LLaMA-Factory's dtype from ``bf16``) are none.

    Raises:
        InputError: the file cannot be read.
    """
    if recipe.written is not None:
        return [edit.key for edit in edits if not program_holds(recipe, edit)]
    if recipe.file is None:
        return []
    document = read_document(recipe.file, format=_format_in(recipe))
    edits = list(edits)
    held = [edit for edit in edits if document.holds(edit)]
    if len(held) == len(edits):
        return []
    after = document.values_after(held)
    return [
        edit.key
        for edit in edits
        if edit not in held and (edit.key, edit.value) not in after.items()
    ]


#: What a message calls a file that is not there yet.
_NEW = Path("lora-doctor.recipe.yaml")


def _format(name: str | None) -> RecipeFormat | None:
    return format_named(name) if name else None


def _format_in(recipe: Recipe) -> RecipeFormat | None:
    """The format that the recipe was read as."""
    return format_named(recipe.set_up.format) if recipe.set_up else None


def as_recipe(recipe: Any, format: str | None = None) -> Recipe:
    """A recipe out of what the Python API takes.

    ``None`` (all open), a :class:`Recipe`, a mapping, a PEFT config object, or the path of a file;
    ``format``: whose file it is, where its content does not decide it.

    Raises:
        InputError: none of these, or the content is not a recipe.
    """
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, (str, Path)):
        return read_recipe(Path(recipe), format)
    if isinstance(recipe, Mapping):
        return make_recipe(recipe, where="recipe", origin="argument")
    if hasattr(recipe, "to_dict") and hasattr(recipe, "peft_type"):
        values = {
            key: value
            for key, value in recipe.to_dict().items()
            if _is_plain(value) and not _is_unset(key, value)
        }
        return make_recipe(
            values, where="recipe", origin="argument", complete=True, ignore_unknown=True
        )
    raise InputError(
        f"recipe: expected a mapping, a PEFT config or a path, got {type(recipe).__name__}"
    )


def _is_unset(key: str, value: Any) -> bool:
    """Whether a config object holds ``None`` where its key has values of another type: frameworks
    hand on what was not said (axolotl's ``fan_in_fan_out=None``), and PEFT takes it for false."""
    if value is not None:
        return False
    try:
        check_value(key, value, "recipe")
    except InputError:
        return True
    return False


def _is_plain(value: Any) -> bool:
    """Whether JSON can carry it; PEFT configs also hold runtime objects that mean nothing here."""
    if isinstance(value, (set, frozenset, list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (str, int, float, bool)) or hasattr(value, "value")
