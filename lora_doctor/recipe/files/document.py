"""A set-up that has been read: its texts, its entries and its format, and edits of it in place.

A recipe file is one text. A shell script may name a second one (``llamafactory-cli train x.yaml``):
then the entries of both are one set-up, those of the command line first, and an edit goes to where
the entry stands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import ENTRY, REMOVE, Edit
from lora_doctor.recipe.files import json_syntax, shell_edit, yaml_splice, yaml_syntax
from lora_doctor.recipe.files.bytes import FileText, decode, read_bytes
from lora_doctor.recipe.files.format import (
    RecipeFormat,
    format_named,
    format_of,
    framework_of,
    read_values,
)
from lora_doctor.recipe.files.looks_like import looks_like, text_looks_like
from lora_doctor.recipe.files.plain import plain
from lora_doctor.recipe.files.renaming import renamed, renames
from lora_doctor.recipe.files.shell_arguments import Argument, TrainingCommand
from lora_doctor.recipe.files.shell_cut import of_command, rejoined
from lora_doctor.recipe.files.shell_files import absent_script
from lora_doctor.recipe.files.shell_syntax import SHELLS, commands
from lora_doctor.recipe.files.spelling import Spelling
from lora_doctor.recipe.keys import check_value
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.static.named_file import named_file
from lora_doctor.static.place import Place
from lora_doctor.text import must_be

#: Folders above a script in which the file that it names is looked for.
_ABOVE = 4


@dataclass(frozen=True)
class Part:
    """One text of a set-up."""

    path: Path
    file: FileText
    #: ``json``, ``yaml`` or ``shell``.
    syntax: str
    entries: Mapping[str, Any]
    places: Mapping[str, Place]
    command: TrainingCommand | None = None

    def spliced(self, text: str, name: str, value: Any) -> str:
        """The text with one entry set, or taken out (``REMOVE``)."""
        from ruamel.yaml.error import YAMLError

        try:
            return _SPLICE[self.syntax](self.path, text, name, value)
        except (yaml_splice.CannotSpliceError, YAMLError):
            raise cannot(self.path, name) from None


@dataclass(frozen=True)
class Document:
    """A set-up: its parts, from the one that yields to the one that wins."""

    path: Path
    parts: tuple[Part, ...]
    format: RecipeFormat

    @property
    def entries(self) -> dict[str, Any]:
        return {name: value for part in self.parts for name, value in part.entries.items()}

    @property
    def places(self) -> dict[str, Place]:
        return {name: place for part in self.parts for name, place in part.places.items()}

    @property
    def text(self) -> str:
        """The text of the file that was given."""
        return next(part for part in self.parts if part.path == self.path).file.text

    def read(self) -> Recipe:
        """The recipe in the set-up. Raises InputError where it is none."""
        recipe = read_values(self.format, self.entries, str(self.path), self.places)
        unknown = {name: self.places[name] for name in recipe.unknown if name in self.places}
        named = _of_keys(recipe, self.places)
        impossible = tuple(
            replace(one, place=self.places.get(recipe.names.get(one.key, one.key)))
            for one in recipe.impossible
            if one.place is None
        )
        places = {**unknown, **recipe.places, **named}
        recipe = replace(recipe, places=places, impossible=impossible)
        if recipe.set_up is None:
            return recipe
        command, text = next(
            ((part.command, part.file.text) for part in self.parts if part.command), (None, "")
        )
        environment = {
            name: str(value)
            for block in ("env", "ENV")
            if isinstance(self.entries.get(block), Mapping)
            for name, value in self.entries[block].items()
        }
        files = [str(part.path) for part in reversed(self.parts)]
        set_up = replace(recipe.set_up, files=tuple(files), environment=environment)
        if command is not None:
            set_up = replace(
                set_up,
                environment={**environment, **command.environment},
                launcher=command.launcher,
                launcher_options=dict(command.launcher_options),
                cuts=of_command(text, command.start, command.end),
            )
        return replace(recipe, set_up=set_up)

    def spelling(self, key: str, entries: Mapping[str, Any]) -> Spelling | None:
        """How the key is spelled: as it stands in these entries, else as a new entry would be;
        ``None`` where the file has no place for it."""
        spellings = self.format.SPELLINGS
        return spellings.present(key, entries) or next(iter(spellings.of_key(key)), None)

    def holds(self, edit: Edit) -> bool:
        """Whether the format has a place for the key, and a spelling for the value."""
        if edit.key.startswith(ENTRY):
            return framework_of(self.format) is not None
        spelling = self.spelling(edit.key, self.entries)
        if spelling is None or edit.value is REMOVE:
            return spelling is not None
        try:
            value = check_value(edit.key, edit.value, str(self.path))
            if self._several(edit.key, value, self.entries) is None:
                spelling.write(value)
        except ValueError:
            return False
        return True

    def values_after(self, edits: Sequence[Edit]) -> Mapping[str, Any]:
        """What the set-up says once it holds these edits, for all of which it has a place."""
        entries = self.entries
        for change in edits:
            for name, value in self._new_entries(entries, change).items():
                _put(entries, name, value)
        return read_values(self.format, entries, str(self.path), {}).values

    def edited(self, edits: Sequence[Edit]) -> dict[Path, FileText]:
        """The texts that the edits change, parsed again and compared with what was asked.

        Raises:
            InputError: the set-up is no recipe, has no place for a key, or is laid out in a way
                that is not edited in place.
        """
        before = self.read()
        texts = {part.path: part.file.text for part in self.parts}
        entries = self.entries
        for old, new in renames(edits, entries).items():
            having = [part for part in self.parts if old in part.entries]
            named = [renamed(part.syntax, part.path, texts[part.path], old, new) for part in having]
            if None not in named:
                texts.update(zip((part.path for part in having), filter(None, named), strict=True))
                entries[new] = entries.pop(old)
        for change in edits:
            for name, value in self._new_entries(entries, change).items():
                for part in self._parts_of(name, value):
                    texts[part.path] = part.spliced(texts[part.path], name, value)
                _put(entries, name, value)
        files = {part.path: FileText(texts[part.path], part.file.bom) for part in self.parts}
        changed = {part.path: files[part.path] for part in self.parts
                   if texts[part.path] != part.file.text}  # fmt: skip
        if changed and not self._reads_as(files, entries, before.edit(edits)):
            raise cannot(self.path, ", ".join(change.key for change in edits))
        return changed

    def _parts_of(self, name: str, value: Any) -> list[Part]:
        """Where an entry is changed: where it wins; a new one goes to the file of the framework,
        and one that is taken out is taken out everywhere."""
        having = [part for part in self.parts if name in part.entries]
        if value is REMOVE:
            return having
        return having[-1:] or [self.parts[0]]

    def _new_entries(self, entries: Mapping[str, Any], change: Edit) -> dict[str, Any]:
        """Name to value (``REMOVE`` takes it out) of the entries that an edit changes, as the file
        spells them; empty where it says so already."""
        where = str(self.path)
        if change.key.startswith(ENTRY):
            name = change.key.removeprefix(ENTRY)
            if change.value is REMOVE:
                return {name: REMOVE} if name in entries else {}
            same = name in entries and equal(entries[name], change.value)
            return {} if same else {name: plain(change.value, f"{where}: {name}")}
        spelling = self.spelling(change.key, entries)
        if spelling is None:
            raise InputError(
                f"{where}: a {self.format.NAME} has no key {change.key!r}; "
                "set it where the model is loaded or use the prescription"
            )
        name = spelling.name
        if change.value is REMOVE:
            return {name: REMOVE} if name in entries else {}
        value = plain(check_value(change.key, change.value, where), f"{where}: {change.key}")
        if name in entries and self._says(entries, change.key, spelling, value):
            return {}
        try:
            several = self._several(change.key, value, entries)
            if several is not None:
                return several
            return {name: plain(spelling.write(value), f"{where}: {name}")}
        except ValueError as error:
            raise InputError(
                f"{where}: {name} {must_be(error)}, not {value!r:.60}; use the prescription"
            ) from None

    def _says(self, entries: Mapping[str, Any], key: str, spelling: Spelling, value: Any) -> bool:
        """Whether the key has this value already."""
        where = str(self.path)
        if framework_of(self.format) is not None:
            return equal(read_values(self.format, entries, where, {}).get(key), value)
        try:
            return equal(check_value(key, spelling.read(entries[spelling.name]), where), value)
        except (InputError, ValueError):  # one that no key can have
            return False

    def _several(self, key: str, value: Any, entries: Mapping[str, Any]) -> dict[str, Any] | None:
        framework = framework_of(self.format)
        return framework.write(key, value, entries) if framework else None

    def _reads_as(
        self, files: Mapping[Path, FileText], entries: Mapping[str, Any], recipe: Recipe
    ) -> bool:
        """Whether the new texts hold these entries, and they amount to this recipe."""
        try:
            data = {path: file.encode(file.text) for path, file in files.items()}
            after = read_document(self.path, data, self.format)
            read = after.read()
            expected = plain(recipe.values, str(self.path))
            found = plain(read.values, str(self.path))
        except InputError:
            return False
        if framework_of(self.format) is None:
            return (
                equal(after.entries, entries)
                and read.complete == recipe.complete
                and equal(found, expected)
            )
        # A default may follow from the edit (alpha from the rank): what was edited counts.
        fixed = [key for key, origin in recipe.origins.items() if origin == "fix"]
        return set(after.entries) == set(entries) and all(
            key in expected and equal(found.get(key), expected[key]) for key in fixed
        )


def read_document(
    path: Path, data: Mapping[Path, bytes] | None = None, format: RecipeFormat | None = None
) -> Document:
    """The set-up in a file. ``data``: the content of files when they were read; others are read
    now. ``format``: the format, where the content does not decide it.

    Raises:
        InputError: the file cannot be read, or is none of those that hold a set-up.
    """
    data = data or {}
    file = decode(path, data[path] if path in data else read_bytes(path))
    if _is_shell(path, file.text):
        return _shell_document(path, file, data, format)
    part = _part(path, file)
    return Document(path, (part,), format or _format_of(part.entries, path))


def _shell_document(
    path: Path, file: FileText, data: Mapping[Path, bytes], format: RecipeFormat | None
) -> Document:
    if not shell_edit.find_commands(file.text):
        _refuse_absent_script(path, file.text)
    command = shell_edit.training_command(file.text, path)
    known = [argument for argument in command.arguments if argument.value is not None]
    entries = {argument.name: argument.value for argument in known}
    places = {
        one.name: _place(path, file.text, one.words[0].start if one.words else one.start)
        for one in known
    }
    shell = Part(path, file, "shell", entries, places, command)
    parts: tuple[Part, ...] = (shell,)
    if command.config:
        named = _named_file(path, command.config)
        content = data[named] if named in data else read_bytes(named)
        parts = (_part(named, decode(named, content)), shell)
    merged = {name: value for part in parts for name, value in part.entries.items()}
    by_program = format_named(command.format) if command.format else None
    found = format or by_program or _format_of(merged, path)
    if framework_of(found) is None:  # options of a script, which would say what they are
        _refuse_absent_script(path, file.text)
    for argument in command.arguments:
        if argument.value is None and _counts(found, argument.name):
            raise _only_known_to_the_shell(_place(path, file.text, argument.start), argument)
    return Document(path, parts, found)


def _refuse_absent_script(path: Path, text: str) -> None:
    """Raises InputError where the file starts a script that is not there."""
    folders = [Path(), *list(path.resolve().parents)[:_ABOVE]]
    for command in commands(rejoined(text), os.environ):
        if command.words and command.words[0].text in ("cd", "pushd"):
            return  # to where it may be
        word = absent_script(command.words, folders)
        if word is not None:
            place = _place(path, text, word.start)
            raise InputError(
                f"{place}: starts {word.text}, which is not there; run it where that is, or name "
                "the file"
            )


def _counts(format: RecipeFormat, name: str) -> bool:
    """Whether an argument is the model or a key of the recipe; where results go is neither."""
    framework = framework_of(format)
    named = (framework.model, framework.revision) if framework is not None else ()
    return name in named or bool(format.SPELLINGS.keys(name))


def _only_known_to_the_shell(place: Place, argument: Argument) -> InputError:
    variables = [name for word in argument.words for name in word.variables]
    hint = (
        f"set it: {variables[0]}=... lora-doctor ..."
        if variables and variables[0].isidentifier()
        else "write the value, or run it: lora-doctor dry-run"
    )
    return InputError(f"{place}: {argument.name} is only known to the shell; {hint}")


def _named_file(script: Path, name: str) -> Path:
    """The file that a command names: from here, or from a folder of the script."""
    folders = [Path(), *list(script.resolve().parents)[:_ABOVE]]
    return named_file(name, folders) or Path(name)


def _part(path: Path, file: FileText) -> Part:
    syntax = _syntax_of(path, file.text)
    module = json_syntax if syntax == "json" else yaml_syntax
    try:
        parsed = module.parse(file.text, path)
    except InputError as error:
        told = text_looks_like(path, file.text)
        if told:
            raise InputError(f"{path}: looks like {told}, which is not a recipe") from None
        raise error from None
    entries = plain(parsed, str(path))
    return Part(path, file, syntax, entries, _places(path, file.text, syntax))


def _places(path: Path, text: str, syntax: str) -> dict[str, Place]:
    starts = json_syntax.starts(text) if syntax == "json" else yaml_splice.starts(text)
    return {name: _place(path, text, start) for name, start in starts.items()}


def _place(path: Path, text: str, start: int) -> Place:
    line = text.count("\n", 0, start) + 1
    return Place(str(path), line, start - (text.rfind("\n", 0, start) + 1) + 1)


def _of_keys(recipe: Recipe, places: Mapping[str, Place]) -> dict[str, Place]:
    named = {key: recipe.names.get(key, key) for key in recipe.values}
    return {key: places[name] for key, name in named.items() if name in places}


def _format_of(entries: Mapping[str, Any], path: Path) -> RecipeFormat:
    found = format_of(entries)
    told = looks_like(entries) if found.SPECIFICITY == 0 else ""
    if told:
        raise InputError(
            f"{path}: looks like {told}, which is not a recipe; give the file that names the model "
            "and its adapter"
        )
    return found


def _is_shell(path: Path, text: str) -> bool:
    first = text.partition("\n")[0]
    if path.suffix.lower() in SHELLS or first.startswith("#!"):
        return not (first.startswith("#!") and "python" in first)
    if path.suffix.lower() in (".yaml", ".yml", ".json") or text.lstrip().startswith("{"):
        return False
    return not path.suffix and bool(shell_edit.find_commands(text))


def _syntax_of(path: Path, text: str) -> str:
    """JSON or YAML: by the name of the file, else by whether it begins as JSON does."""
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return "yaml"
    return "json" if suffix == ".json" or text.lstrip().startswith("{") else "yaml"


def _splice_json(path: Path, text: str, name: str, value: Any) -> str:
    if value is REMOVE:
        return json_syntax.remove_key(text, name)
    return json_syntax.set_key(text, name, value)


def _splice_yaml(path: Path, text: str, name: str, value: Any) -> str:
    if value is REMOVE:
        return yaml_splice.remove_key(text, [name])
    return yaml_splice.set_key(text, [name], value)


def _splice_shell(path: Path, text: str, name: str, value: Any) -> str:
    if value is REMOVE:
        return shell_edit.remove_entry(text, path, name)
    return shell_edit.set_entry(text, path, name, value)


_SPLICE = {"json": _splice_json, "yaml": _splice_yaml, "shell": _splice_shell}


def _put(entries: dict[str, Any], name: str, value: Any) -> None:
    if value is REMOVE:
        entries.pop(name, None)
    else:
        entries[name] = value


def cannot(path: Path, keys: str) -> InputError:
    return InputError(f"{path}: {keys} cannot be edited in place in this layout; edit it by hand")


def equal(left: Any, right: Any) -> bool:
    """Equal as a file is: True is not 1, and a mapping has no order."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
