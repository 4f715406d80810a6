"""Readers and writers of the files in which people keep their recipe.

Two layers. The *syntax* (``json_syntax``, ``yaml_syntax``) knows bytes and spans; the *format*
(``peft_config``, ``own``) knows which keys mean what. A format is a module with ``NAME``,
``recognises(values)``, ``holds(key)`` and ``read(values, where)``; the first of ``FORMATS`` that
recognises the content reads it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.files import replace_file
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.files import json_syntax, own, peft_config, yaml_syntax
from lora_doctor.recipe.files.bytes import FileText, decode, read_text
from lora_doctor.recipe.keys import (
    ADAPTER_KEYS,
    ALIASES,
    OUTER_KEYS,
    check_value,
)
from lora_doctor.recipe.recipe import Recipe, make_recipe

__all__ = [
    "FORMATS",
    "apply_edits",
    "edited_text",
    "format_holds",
    "holds_key",
    "new_recipe_text",
    "read_recipe",
    "recipe_diff",
    "write_edits",
]

#: Asked in this order; the last takes what is left.
FORMATS: tuple[Any, ...] = (peft_config, own)

#: No recipe nests deeper (``layer_replication`` and quantization configs have 3 levels).
_MAX_DEPTH = 12
_MAX_INTEGER = 1 << 63


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a file: an ``adapter_config.json`` or our YAML or JSON recipe file.

    Raises:
        InputError: the file cannot be read or is no recipe; one line with the path and, for
            syntax errors, the line.
    """
    return _open(Path(path)).read()


def holds_key(path: str | Path, key: str) -> bool:
    """Whether the format of this file has a place for the key.

    An ``adapter_config.json`` has none for loading and training keys (``dtype``,
    ``load_in_4bit``): those edits go into the prescription only.
    """
    return bool(_open(Path(path)).format.holds(key))


def format_holds(path: Path, data: bytes, key: str) -> bool:
    """As :func:`holds_key`, of a file whose content has been read."""
    return bool(_parse(path, decode(path, data)).format.holds(key))


def edited_text(path: Path, data: bytes, edits: Iterable[Edit]) -> FileText:
    """The file after the edits, out of the content that it had when it was read; nothing is read
    or written. Raises as :func:`write_edits`."""
    return _edited(_parse(path, decode(path, data)), list(edits))


def write_edits(path: str | Path, edits: Iterable[Edit]) -> str:
    """The text of the file after the edits; nothing is written.

    Whatever is not touched stays as it is: comments, order, quotes, indentation, line ends, and
    the alias under which a key is spelled (``torch_dtype``). A value that is there already leaves
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
    lines = [f"# {_printable(line)}".rstrip() for line in comment.splitlines()]
    order = [*ADAPTER_KEYS, *OUTER_KEYS]
    rank = {key: number for number, key in enumerate(order)}
    for key in sorted(recipe.values, key=lambda name: rank.get(name, len(rank))):
        value = _plain(recipe.values[key], f"recipe: {key}")
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


def _printable(text: str) -> str:
    """The text without control characters, which YAML refuses even in a comment."""
    return "".join(character if character.isprintable() else "?" for character in text)


@dataclass(frozen=True)
class _Document:
    """A recipe file that has been read: its text, its raw values and its format."""

    path: Path
    file: FileText
    syntax: Any
    format: Any
    values: Mapping[str, Any]

    @property
    def text(self) -> str:
        return self.file.text

    def read(self) -> Recipe:
        return self.format.read(self.values, str(self.path))  # type: ignore[no-any-return]


def _open(path: Path) -> _Document:
    return _parse(path, read_text(path))


def _parse(path: Path, file: FileText) -> _Document:
    syntax = _syntax_of(path, file.text)
    values = _plain(syntax.parse(file.text, path), str(path))
    found = next(format_ for format_ in FORMATS if format_.recognises(values))
    return _Document(path, file, syntax, found, values)


def _syntax_of(path: Path, text: str) -> Any:
    """JSON or YAML: by the name of the file, else by whether it begins as JSON does."""
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return yaml_syntax
    return json_syntax if suffix == ".json" or text.lstrip().startswith("{") else yaml_syntax


def _edited(document: _Document, edits: list[Edit]) -> FileText:
    """The file after the edits, parsed again and compared key by key with what was asked."""
    from lora_doctor.recipe.files import yaml_splice

    before = document.read()  # a file that is no recipe is not edited
    text = document.text
    wanted: dict[str, Any] = dict(document.values)
    for change in edits:
        if not document.format.holds(change.key):
            raise InputError(
                f"{document.path}: a {document.format.NAME} has no key {change.key!r}; "
                "set it where the model is loaded or use the prescription"
            )
        spelled = next((name for name in wanted if ALIASES.get(name, name) == change.key), None)
        if change.value is REMOVE:
            if spelled is None:
                continue
            del wanted[spelled]
        else:
            where = str(document.path)
            value = _plain(check_value(change.key, change.value, where), f"{where}: {change.key}")
            if spelled is not None:
                present = check_value(change.key, wanted[spelled], where)
                if _equal(present, value):
                    continue
            spelled = spelled or change.key
            wanted[spelled] = value
        try:
            text = _splice(document, yaml_splice, text, spelled, wanted)
        except yaml_splice.CannotSpliceError:
            raise _cannot(document.path, change.key) from None
    file = FileText(text, document.file.bom)
    if text != document.text:
        try:
            after = _parse(document.path, file)
            same = _equal(after.values, wanted) and after.read().complete == before.complete
        except InputError:
            same = False
        if not same:
            raise _cannot(document.path, ", ".join(change.key for change in edits))
    return file


def _splice(
    document: _Document, yaml_splice: Any, text: str, key: str, wanted: Mapping[str, Any]
) -> str:
    if document.syntax is json_syntax:
        if key in wanted:
            return json_syntax.set_key(text, key, wanted[key])
        return json_syntax.remove_key(text, key)
    if key in wanted:
        return str(yaml_splice.set_key(text, [key], wanted[key]))
    return str(yaml_splice.remove_key(text, [key]))


def _cannot(path: Path, keys: str) -> InputError:
    return InputError(f"{path}: {keys} cannot be edited in place in this layout; edit it by hand")


def _equal(left: Any, right: Any) -> bool:
    """Equal as a file is: True is not 1, and a mapping has no order."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """The value as JSON has it, so that every later stage can carry it.

    Raises:
        InputError: a date, bytes, a key that is no text, a number or nesting beyond all sense, or
            text that no encoding can write.
    """
    if depth > _MAX_DEPTH:
        raise InputError(f"{where}: is nested too deeply to be a recipe")
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        if abs(value) >= _MAX_INTEGER:
            raise InputError(f"{where}: a number with more than 18 digits is no recipe value")
        return int(value)
    if isinstance(value, str):
        try:  # an astral character that was escaped as two halves becomes one
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise InputError(f"{where}: has half a surrogate pair, which is no text") from None
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, depth + 1) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where}: key {key!r:.60} is not a text; put it in quotes")
        plain = {}
        for key, item in value.items():
            inner = where if depth else f"{where}: {key!r:.60}"
            plain[_plain(key, where)] = _plain(item, inner, depth + 1)
        return plain
    raise InputError(
        f"{where}: a {type(value).__name__} is no recipe value; put it in quotes if it is a text"
    )


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
        values = {key: value for key, value in recipe.to_dict().items() if _is_plain(value)}
        return make_recipe(
            values, where="recipe", origin="argument", complete=True, ignore_unknown=True
        )
    raise InputError(
        f"recipe: expected a mapping, a PEFT config or a path, got {type(recipe).__name__}"
    )


def _is_plain(value: Any) -> bool:
    """Whether JSON can carry it; PEFT configs also hold runtime objects that mean nothing here."""
    if isinstance(value, (set, frozenset, list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (str, int, float, bool)) or hasattr(value, "value")
