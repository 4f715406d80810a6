"""The prescription: the applied fixes as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import REMOVE, Edit, Patch
from lora_doctor.recipe.keys import check_value, is_known_key
from lora_doctor.recipe.recipe import make_recipe

SCHEMA_VERSION = "1"
#: What a file has to hold; the other keys are empty where they are left out. A file that is
#: written here has all of them.
REQUIRED = ("schema_version", "model", "recipe")


@dataclass(frozen=True)
class Prescription:
    """The applied fixes."""

    #: The model source in words.
    model: str
    #: The changes of the recipe, in the order of their application.
    edits: tuple[Edit, ...] = ()
    #: All values of the recipe after the edits, under PEFT's and transformers' names.
    recipe: Mapping[str, Any] = field(default_factory=dict)
    #: The changes of the training process.
    patches: tuple[Patch, ...] = ()
    #: Package to version that the fixes were tried with.
    versions: Mapping[str, str] = field(default_factory=dict)
    #: Version of the file's layout.
    schema_version: str = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The content of the file; valid against ``schema/prescription-1.json``."""
        return {
            "schema_version": self.schema_version,
            "model": self.model,
            "edits": [edit.to_json() for edit in self.edits],
            "recipe": dict(self.recipe),
            "patches": [patch.to_json() for patch in self.patches],
            "versions": dict(self.versions),
        }


def write_prescription(path: str | Path, prescription: Prescription) -> None:
    """Write the file, whole or not at all.

    Raises:
        InputError: it cannot be written there, or holds a value that JSON does not have.
    """
    from lora_doctor.files import write_text

    write_text(path, prescription_text(prescription, f"prescription {str(path)!r}"))


def prescription_text(prescription: Prescription, where: str = "prescription") -> str:
    """The content of the file. Raises InputError for a value that JSON does not have."""
    try:
        data = prescription.to_json()
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
        if text != text.encode("utf-8", "replace").decode("utf-8"):
            # A file name that is no text (half a surrogate pair) has to be escaped.
            text = json.dumps(data, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: cannot be written: {error}") from None
    return text + "\n"


def read_prescription(path: str | Path) -> Prescription:
    """The prescription in a file, every part checked but for which patches there are
    (``prescription.apply.checked_prescription``).

    Raises:
        InputError: unreadable, not a prescription, of a schema that this version does not know, or
            it edits what is no key of a recipe.
    """
    from lora_doctor.recipe.files import json_syntax
    from lora_doctor.recipe.files.bytes import read_text

    path = Path(path)
    return parse_prescription(json_syntax.parse(read_text(path).text, path), str(path))


def parse_prescription(data: Mapping[str, Any], where: str) -> Prescription:
    """A checked prescription out of the content of its file. Raises InputError."""
    if "schema_version" in data:  # first: another version may have other keys
        _check_version(_typed(data, "schema_version", str, where), where)
    _require(data, REQUIRED, where)
    _refuse_others(data, {item.name for item in fields(Prescription)}, where)
    versions = _typed({"versions": {}, **data}, "versions", dict, where)
    if not all(isinstance(value, str) for value in versions.values()):
        raise InputError(f"{where}: versions: each value must be a string")
    edits = _typed({"edits": [], **data}, "edits", list, where)
    patches = _typed({"patches": [], **data}, "patches", list, where)
    recipe = make_recipe(
        _typed(data, "recipe", dict, where),
        where=f"{where}: recipe", origin="file", complete=True, ignore_unknown=True,
    )  # fmt: skip
    return Prescription(
        model=_typed(data, "model", str, where),
        edits=tuple(_edit(item, f"{where}: edits[{n}]") for n, item in enumerate(edits)),
        recipe=dict(recipe.values),
        patches=tuple(_patch(item, f"{where}: patches[{n}]") for n, item in enumerate(patches)),
        versions=versions,
    )


def _check_version(version: str, where: str) -> None:
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{where}: has schema_version {version!r:.40}, this lora-doctor reads "
            f"{SCHEMA_VERSION!r}; make it anew with `lora-doctor fix --apply` or update lora-doctor"
        )


def _require(data: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Raises InputError that names every key that is missing, not only the first."""
    missing = [key for key in keys if key not in data]
    if missing:
        raise InputError(
            f"{where}: has no {', '.join(map(repr, missing))}; needed here: {', '.join(keys)}"
        )


def _typed(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    names: dict[Any, str] = {str: "a string", list: "a list", dict: "a mapping"}
    if not isinstance(data[key], kind):
        raise InputError(f"{where}: {key} must be {names[kind]}, not a {type(data[key]).__name__}")
    return data[key]


def _refuse_others(data: Mapping[str, Any], known: set[str], where: str) -> None:
    others = sorted(data.keys() - known)
    if others:
        raise InputError(
            f"{where}: has {others[0]!r:.60}, which is not a key of a prescription; remove it"
        )


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: is a {type(data).__name__}, not a mapping")
    return data


def _edit(data: Any, where: str) -> Edit:
    data = _mapping(data, where)
    _require(data, ("key",), where)
    key = _typed(data, "key", str, where)
    if not is_known_key(key):
        raise InputError(f"{where}: {key!r:.60} is not a key of a recipe; remove this edit")
    if data.get("remove") is True and "value" not in data:
        _refuse_others(data, {"key", "remove"}, where)
        return Edit(key, REMOVE)
    if "value" not in data:
        raise InputError(f"{where}: has neither 'value' nor 'remove': true")
    _refuse_others(data, {"key", "value"}, where)
    return Edit(key, check_value(key, data["value"], where))


def _patch(data: Any, where: str) -> Patch:
    data = _mapping(data, where)
    _refuse_others(data, {"name", "parameters"}, where)
    _require(data, ("name",), where)
    parameters = _typed({"parameters": {}, **data}, "parameters", dict, where)
    return Patch(_typed(data, "name", str, where), parameters)
