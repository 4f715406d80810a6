"""The census as one self-contained page and as Markdown totals.

Without its script the page is a plain table; the script only searches and filters. Texts of
exceptions are foreign: the template escapes every value.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lora_doctor.census.pairs import GENERATION, task
from lora_doctor.census.row import COLUMNS, Cell, Row
from lora_doctor.census.run import Census
from lora_doctor.recipe.files.read_write import new_recipe_text
from lora_doctor.recipe.recipe import Recipe

TITLES = {
    "builds": "Builds",
    "peft_default": "PEFT default",
    "all_linear": "all-linear",
    "recipe": "Proposed recipe",
    "gradient_checkpointing": "Checkpointing",
    "load_in_4bit": "4-bit",
    "load_in_8bit": "8-bit",
    "bfloat16": "bf16",
    "float16": "fp16",
    "save_reload": "Save, load",
    "merge": "Merge",
}
MARKS = {"yes": "✓", "no": "✗", "unknown": "–", "unreached": "·"}


def render(census: Census) -> str:
    """The page."""
    return str(
        _template().render(
            rows=[_view(row) for row in census.rows],
            columns=[(name, TITLES[name], meaning) for name, meaning in COLUMNS.items()],
            versions=list(census.versions.items()),
            groups=_groups(census.rows),
            marks=MARKS,
        )
    )


def totals(censuses: Sequence[Census]) -> str:
    """Markdown: for each stack a table of counts, and the reason of each row without a recipe."""
    lines = [
        "<!-- Written by `nox -s census census_page`. Do not edit. -->",
        "",
        "# Census: can I use LoRA on it?",
        "",
        "Every architecture that a transformers release lists for generation (`--class` asks for",
        "other tasks), tried by `lora-doctor census` as a tiny model with random weights on a CPU.",
        "Each number counts pairs of auto class and model type. The census itself writes a",
        "searchable page with the recipe of each.",
        "",
        *(f"- {TITLES[name]}: {meaning}." for name, meaning in COLUMNS.items()),
    ]
    for census in censuses:
        lines += _stack(census)
    return "\n".join(lines) + "\n"


def _stack(census: Census) -> list[str]:
    versions = census.versions
    lines = ["", f"## transformers {versions['transformers']}, peft {versions['peft']}", ""]
    heads = ["task", "pairs", *TITLES.values()]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, rows in _groups(census.rows):
        counts = [str(_count(rows, column)) for column in COLUMNS]
        lines.append("| " + " | ".join([name, str(len(rows)), *counts]) + " |")
    generating = [row for row in census.rows if row.auto_class in GENERATION]
    if len(generating) < len(census.rows):
        lines += _share("for generation ", generating)
    lines += _share("", census.rows)
    built = [row for row in census.rows if row.cells["builds"].status == "yes"]
    not_built = [row for row in census.rows if row.cells["builds"].status != "yes"]
    not_trained = [row for row in built if row.cells["recipe"].status != "yes"]
    lines += _reasons("Without a recipe that trains:", not_trained, "recipe")
    return lines + _reasons("Not built, or no batch runs:", not_built, "builds")


def _share(which: str, rows: Sequence[Row]) -> list[str]:
    """How many of those that build train, in words."""
    built = [row for row in rows if row.cells["builds"].status == "yes"]
    if not built:
        return []
    trained = _count(built, "recipe")
    return [
        "",
        f"Of {len(built)} pairs {which}that build, {trained} train with the recipe that",
        f"`lora-doctor check arch:NAME` proposes: {100 * trained / len(built):.1f} %.",
    ]


def _reasons(head: str, rows: Sequence[Row], column: str) -> list[str]:
    if not rows:
        return []
    lines = ["", head, "", "| model type | task | why |", "|---|---|---|"]
    for row in rows:
        reason = row.cells[column].reason.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{row.model_type}` | {task(row.auto_class)} | {reason} |")
    return lines


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows by task, and all of them."""
    others = sorted({row.auto_class for row in rows} - set(GENERATION))
    groups = [
        (task(auto_class), [row for row in rows if row.auto_class == auto_class])
        for auto_class in (*GENERATION, *others)
    ]
    return [(words, found) for words, found in groups if found] + [("all", list(rows))]


def _count(rows: Sequence[Row], column: str) -> int:
    return sum(row.cells[column].status == "yes" for row in rows)


def _view(row: Row) -> dict[str, Any]:
    reasons = [
        (TITLES[name], cell.reason)
        for name, cell in row.cells.items()
        if cell.status != "yes" and cell.reached
    ]
    words = task(row.auto_class)
    recipe = new_recipe_text(Recipe(dict(row.recipe), {})) if row.recipe else ""
    searched = [row.model_type, words, row.model_class, recipe, *(reason for _, reason in reasons)]
    return {
        "name": row.model_type,
        "task": words,
        "model_class": row.model_class,
        "parameters": _billions(row.parameters),
        "cells": [(name, _look(cell), cell.reason) for name, cell in row.cells.items()],
        "reasons": reasons,
        "recipe": recipe,
        "command": f"lora-doctor check arch:{row.model_type} --class {row.auto_class}",
        "text": " ".join(searched).lower(),
    }


def _look(cell: Cell) -> str:
    return cell.status if cell.reached else "unreached"


def _billions(count: int) -> str:
    if count >= 10**9:
        return f"{count / 10**9:.1f} B"
    return f"{count / 10**6:.0f} M" if count else ""


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for name in ("census.css", "census.js"):
        text = (folder / name).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        kind = name.partition(".")[2]
        environment.globals[kind] = Markup(text)
        # Only this very text is run or used: nothing that a model's error says can be.
        environment.globals[f"{kind}_hash"] = f"sha256-{digest}"
    return environment.get_template("census.html.j2")
