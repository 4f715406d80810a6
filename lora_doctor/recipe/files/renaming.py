"""A key of a set-up under another name, at its place: its value, comment and neighbours stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lora_doctor.recipe.edit import ENTRY, REMOVE, Edit
from lora_doctor.recipe.files import json_syntax, shell_edit, yaml_splice


def renames(edits: Sequence[Edit], entries: Mapping[str, Any]) -> dict[str, str]:
    """Old name to new one of the entries that the edits take out and set again, with the same
    value, under a name that is free."""
    found = {}
    for one, other in pairwise(edits):
        old, new = one.key.removeprefix(ENTRY), other.key.removeprefix(ENTRY)
        both = one.key.startswith(ENTRY) and other.key.startswith(ENTRY)
        if not both or one.value is not REMOVE or old not in entries or new in entries:
            continue
        if other.value == entries[old] and type(other.value) is type(entries[old]):
            found[old] = new
    return found


def renamed(syntax: str, path: Path, text: str, old: str, new: str) -> str | None:
    """The text with the key renamed; ``None`` where it is not written in the usual way."""
    start = _start(syntax, path, text, old)
    if start is None:
        return None
    name = re.escape(old).replace("_", "[-_]")
    found = re.compile(rf"(?P<lead>[\"']?-{{0,2}}){name}(?=[\"'\s:=]|\Z)").match(text, start)
    if found is None:
        return None
    with_dashes = "-" in found[0].lstrip("-\"'") and "_" not in found[0]
    written = new.replace("_", "-") if with_dashes else new
    return text[:start] + found["lead"] + written + text[found.end() :]


def _start(syntax: str, path: Path, text: str, name: str) -> int | None:
    if syntax == "shell":
        command = shell_edit.training_command(text, path)
        places = [one.start for one in command.arguments if one.name == name]
        return places[0] if len(places) == 1 else None
    starts = json_syntax.starts(text) if syntax == "json" else yaml_splice.starts(text)
    return starts.get(name)
