"""A recipe in lines that the formats share: its keys, and what a fix changes in them as a diff."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_doctor.recipe.edit import ENTRY, REMOVE
from lora_doctor.reports._text import many, plain, shown, visible

if TYPE_CHECKING:
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.fix import Fix

_EMPTY: Mapping[str, Any] = {}
#: Texts that YAML reads as texts without quotes: they start with a letter, and are no other value.
_BARE = re.compile(r"[A-Za-z_][\w.-]{0,119}", re.ASCII)
_RESERVED = frozenset({"true", "false", "null", "none", "yes", "no", "on", "off", "y", "n"})


@dataclass(frozen=True)
class DiffLine:
    """``sign`` is ``-``, ``+`` or a space."""

    sign: str
    text: str


def fix_diff(fix: Fix, recipe: Recipe, most: int = 60) -> list[DiffLine]:
    """What the edits of a fix change in the recipe's values, as lines of YAML-like text; each key
    under the name that the user's file has for it."""
    lines: list[DiffLine] = []
    for edit in fix.edits:
        key, held = edit.key.removeprefix(ENTRY), recipe.values
        if edit.key != key:
            held = recipe.set_up.entries if recipe.set_up else {}
        name = recipe.names.get(edit.key, key)
        old = _lines(name, held[key]) if key in held else []
        new = [] if edit.value is REMOVE else _lines(name, edit.value)
        lines += _diff(old, new)
    if len(lines) > most:
        rest = len(lines) - most
        lines = [*lines[:most], DiffLine(" ", f"… {many(rest, 'more line')}")]
    return lines


def text_diff(diff: str, most: int = 200) -> list[DiffLine]:
    """A unified diff as lines, without the headers that name files."""
    lines = []
    for line in diff.splitlines():
        if line.startswith(("---", "+++")):
            continue
        sign = line[:1] if line[:1] in ("+", "-") else " "
        lines.append(DiffLine(sign, visible(line[1:] if line[:1] in "+- " else line, 300)))
    if len(lines) > most:
        lines = [*lines[:most], DiffLine(" ", f"… {many(len(lines) - most, 'more line')}")]
    return lines


def _lines(key: str, value: Any) -> list[str]:
    """One recipe key as lines: lists one entry per line, so that a diff shows what moved."""
    name = visible(key, 80)
    if isinstance(value, (list, tuple, set, frozenset)) and len(value):
        entries = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [f"{name}:", *(f"  - {literal(item)}" for item in entries)]
    return [f"{name}: {literal(value)}"]


def literal(value: Any) -> str:
    """A recipe value as one writes it in YAML; texts bare where that is unambiguous.

    Single quotes leave the backslashes of a regular expression as the user knows them.
    """
    if isinstance(value, str):
        if _is_bare(value):
            return value
        if "'" not in value and value.isprintable() and len(value) <= 1000:
            return f"'{visible(value, None)}'"
    text: str = visible(json.dumps(plain(value), ensure_ascii=False), 300)
    return text


def _is_bare(text: str) -> bool:
    return bool(_BARE.fullmatch(text)) and text.lower() not in _RESERVED


def _diff(old: list[str], new: list[str]) -> list[DiffLine]:
    lines: list[DiffLine] = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(
        None, old, new, autojunk=False
    ).get_opcodes():
        if tag == "equal":
            lines += _folded(old[i1:i2])
        else:
            lines += [DiffLine("-", text) for text in old[i1:i2]]
            lines += [DiffLine("+", text) for text in new[j1:j2]]
    return lines


def _folded(lines: list[str], most: int = 8) -> list[DiffLine]:
    if len(lines) <= most:
        return [DiffLine(" ", text) for text in lines]
    middle = f"  … {len(lines) - 4} unchanged"
    return [DiffLine(" ", text) for text in (*lines[:2], middle, *lines[-2:])]


def set_by(diagnosis: Diagnosis) -> Mapping[str, Any]:
    """Key of the recipe to who set it; after a dry run the line of a file, or the command line."""
    if diagnosis.dry_run is None:
        return diagnosis.recipe.origins
    places = diagnosis.dry_run.origins
    return {key: places.get(key, "framework default") for key in diagnosis.recipe.values}


def recipe_rows(
    values: Mapping[str, Any], origins: Mapping[str, Any] = _EMPTY
) -> list[tuple[str, str, str]]:
    """Recipe keys as key, value and who set it."""
    return [
        (visible(key, 80), literal(value) if not isinstance(value, (list, tuple)) else shown(value),
         visible(origins.get(key, ""), 80))
        for key, value in values.items()
    ]  # fmt: skip
