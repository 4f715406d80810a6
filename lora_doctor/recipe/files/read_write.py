"""Readers and writers of the files in which people keep their recipe.

Two layers. The *syntax* (``json_syntax``, ``yaml_syntax``) knows bytes and spans; the *format*
(a file in ``formats/``) knows how the keys of a recipe are spelled.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.files import replace_file
from lora_doctor.recipe.edit import REMOVE, Edit, Rewrite
from lora_doctor.recipe.files import json_syntax, yaml_splice, yaml_syntax
from lora_doctor.recipe.files.bytes import FileText, decode, read_bytes, read_text
from lora_doctor.recipe.files.format import RecipeFormat, format_of, read_values
from lora_doctor.recipe.files.plain import plain
from lora_doctor.recipe.files.spelling import Spelling
from lora_doctor.recipe.keys import ADAPTER_KEYS, OUTER_KEYS, check_value
from lora_doctor.recipe.program.edits import edited_program, program_holds
from lora_doctor.recipe.program.setup import is_program, read_program_recipe
from lora_doctor.recipe.recipe import Recipe, make_recipe
from lora_doctor.text import printable

__all__ = [
    "apply_edits",
    "as_recipe",
    "as_written",
    "edited_text",
    "holds_edit",
    "new_recipe_text",
    "read_recipe",
    "recipe_diff",
    "write_edits",
]


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a file: an ``adapter_config.json`` or our YAML or JSON recipe file.

    Raises:
        InputError: the file cannot be read or is no recipe; one line with the path and, for
            syntax errors, the line.
    """
    path = Path(path)
    if is_program(path):
        return read_program_recipe(path)
    return replace(_open(path).read(), file=path)


def holds_edit(path: Path, data: bytes, edit: Edit) -> bool:
    """Whether the format of this file has a place for the key, and a spelling for the value.
    ``data``: the content of the file when it was read.

    An ``adapter_config.json`` has none for loading and training keys (``dtype``,
    ``load_in_4bit``): those edits go into the prescription only.
    """
    document = _parse(path, decode(path, data))
    spelling = document.spelling(edit.key, document.values)
    if spelling is None or edit.value is REMOVE:
        return spelling is not None
    try:
        spelling.write(check_value(edit.key, edit.value, str(path)))
    except ValueError:
        return False
    return True


def edited_text(path: Path, data: bytes, edits: Iterable[Edit]) -> FileText:
    """The file after the edits, out of the content that it had when it was read; nothing is read
    or written. Raises as :func:`write_edits`."""
    return _edited(_parse(path, decode(path, data)), list(edits))


def write_edits(path: str | Path, edits: Iterable[Edit]) -> str:
    """The text of the file after the edits; nothing is written.

    Whatever is not touched stays as it is: comments, order, quotes, indentation, line ends, and
    the name under which the file has a key (``torch_dtype``). A value that is there already leaves
    the text alone, so a second run changes nothing.

    Raises:
        InputError: the file is no recipe, has no place for a key, or is laid out in a way that
            is not edited in place.
    """
    return _edited(_open(Path(path)), list(edits)).text


def apply_edits(path: str | Path, edits: Iterable[Edit]) -> Path | None:
    """Write the edits into the file, at once, and keep the old one.

    Returns:
        The path of the backup (``NAME.bak``, numbered if an older, different one is there), or
        ``None`` when the file had these values already and was not touched.

    Raises:
        InputError: as :func:`write_edits`, or the file cannot be written; it is unchanged then.
    """
    path = Path(path)
    document = _open(path)
    edited = _edited(document, list(edits))
    if edited.text == document.file.text:
        return None
    return replace_file(path, document.file.encode(edited.text))


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
        data = read_bytes(recipe.file)
        held = [edit for edit in edits if holds_edit(recipe.file, data, edit)]
        edited_text(recipe.file, data, held)  # which compares what it reads with what was asked
        return edited
    text = new_recipe_text(edited)
    read = _parse(_NEW, decode(_NEW, text.encode("utf-8"))).read()
    return replace(edited, values=read.values)


def without_place(recipe: Recipe, edits: Iterable[Edit]) -> list[str]:
    """Keys of edits that the file of the recipe has no place for: they go into the prescription.

    Raises:
        InputError: the file cannot be read.
    """
    if recipe.written is not None:
        return [edit.key for edit in edits if not program_holds(recipe, edit)]
    if recipe.file is None:
        return []
    data = read_bytes(recipe.file)
    return [edit.key for edit in edits if not holds_edit(recipe.file, data, edit)]


#: What a message calls a file that is not there yet.
_NEW = Path("lora-doctor.recipe.yaml")


@dataclass(frozen=True)
class _Document:
    """A recipe file that has been read: its text, its raw values and its format."""

    path: Path
    file: FileText
    syntax: Any
    format: RecipeFormat
    values: Mapping[str, Any]

    @property
    def text(self) -> str:
        return self.file.text

    def read(self) -> Recipe:
        return read_values(self.format, self.values, str(self.path))

    def spelling(self, key: str, values: Mapping[str, Any]) -> Spelling | None:
        """How the key is spelled: as it stands in these values of the file, else as a new entry
        would be; ``None`` where the file has no place for it."""
        spellings = self.format.SPELLINGS
        return spellings.present(key, values) or next(iter(spellings.of_key(key)), None)


def _open(path: Path) -> _Document:
    return _parse(path, read_text(path))


def _parse(path: Path, file: FileText) -> _Document:
    syntax = _syntax_of(path, file.text)
    values = plain(syntax.parse(file.text, path), str(path))
    return _Document(path, file, syntax, format_of(values), values)


def _syntax_of(path: Path, text: str) -> Any:
    """JSON or YAML: by the name of the file, else by whether it begins as JSON does."""
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return yaml_syntax
    return json_syntax if suffix == ".json" or text.lstrip().startswith("{") else yaml_syntax


def _edited(document: _Document, edits: list[Edit]) -> FileText:
    """The file after the edits, parsed again and compared key by key with what was asked."""
    before = document.read()  # a file that is no recipe is not edited
    text, values = document.text, dict(document.values)
    for change in edits:
        entry = _new_entry(document, values, change)
        if entry is None:
            continue
        name, value = entry
        text = _splice(document, text, name, value)
        if value is REMOVE:
            del values[name]
        else:
            values[name] = value
    file = FileText(text, document.file.bom)
    if text != document.text and not _reads_as(document, file, values, before.edit(edits)):
        raise _cannot(document.path, ", ".join(change.key for change in edits))
    return file


def _new_entry(
    document: _Document, values: Mapping[str, Any], change: Edit
) -> tuple[str, Any] | None:
    """The name and the value (``REMOVE`` takes it out) of the entry that an edit changes, as the
    file spells them; ``None`` where the file says so already."""
    spelling = document.spelling(change.key, values)
    if spelling is None:
        raise InputError(
            f"{document.path}: a {document.format.NAME} has no key {change.key!r}; "
            "set it where the model is loaded or use the prescription"
        )
    name, where = spelling.name, str(document.path)
    if change.value is REMOVE:
        return (name, REMOVE) if name in values else None
    value = plain(check_value(change.key, change.value, where), f"{where}: {change.key}")
    if name in values and _equal(
        check_value(change.key, spelling.read(values[name]), where), value
    ):
        return None
    try:
        return name, plain(spelling.write(value), f"{where}: {name}")
    except ValueError as error:
        raise InputError(
            f"{where}: {name} {error}, not {value!r:.60}; use the prescription"
        ) from None


def _splice(document: _Document, text: str, name: str, value: Any) -> str:
    """The text with the value of one entry replaced, a new entry added or one taken out."""
    try:
        if document.syntax is json_syntax:
            if value is REMOVE:
                return json_syntax.remove_key(text, name)
            return json_syntax.set_key(text, name, value)
        if value is REMOVE:
            return yaml_splice.remove_key(text, [name])
        return yaml_splice.set_key(text, [name], value)
    except yaml_splice.CannotSpliceError:
        raise _cannot(document.path, name) from None


def _reads_as(
    document: _Document, file: FileText, values: Mapping[str, Any], recipe: Recipe
) -> bool:
    """Whether the new text holds these values, and they amount to this recipe."""
    try:
        after = _parse(document.path, file)
        read = after.read()
        expected = plain(recipe.values, str(document.path))
    except InputError:
        return False
    return (
        _equal(after.values, values)
        and read.complete == recipe.complete
        and _equal(read.values, expected)
    )


def _cannot(path: Path, keys: str) -> InputError:
    return InputError(f"{path}: {keys} cannot be edited in place in this layout; edit it by hand")


def _equal(left: Any, right: Any) -> bool:
    """Equal as a file is: True is not 1, and a mapping has no order."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def as_recipe(recipe: Any) -> Recipe:
    """A recipe out of what the Python API takes.

    ``None`` (all open), a :class:`Recipe`, a mapping, a PEFT config object, or the path of a file.

    Raises:
        InputError: none of these, or the content is not a recipe.
    """
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, (str, Path)):
        return read_recipe(Path(recipe))
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
