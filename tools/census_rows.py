"""Every row of the census on the site: what is kept of it in docs/, and the table made of that.

    python -m tools.census_rows FOLDER       # of `lora-doctor census`; writes docs/census_rows.json

The file holds less than ``census.json``: model type, task and targets of a row, and status and
reason of each cell that is not ``yes``. ``docs/conf.py`` makes the table at build.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_doctor.census.page import MARKS, TITLES
from lora_doctor.census.pairs import task
from lora_doctor.census.row import Row
from lora_doctor.census.run import Census, load

FILE = Path(__file__).parent.parent / "docs" / "census_rows.json"
#: Keys of a recipe that say where the adapters go.
_TARGETS = ("target_modules", "target_parameters")


def written(census: Census) -> str:
    """The content of the file: a row on a line."""
    rows = ",\n".join(json.dumps(_kept(row)) for row in census.rows)
    return f'{{"versions": {json.dumps(census.versions)},\n"rows": [\n{rows}\n]}}\n'


def _kept(row: Row) -> dict[str, Any]:
    cells = {
        name: [cell.status if cell.reached else "unreached", *filter(None, [cell.reason])]
        for name, cell in row.cells.items()
        if cell.status != "yes"
    }
    recipe = {key: row.recipe[key] for key in _TARGETS if key in row.recipe}
    return {
        "type": row.model_type,
        "task": task(row.auto_class),
        "class": row.model_class,
        "recipe": recipe,
        "cells": cells,
    }


def table(data: Mapping[str, Any]) -> str:
    """Markdown: the versions, what the marks mean, and the table with a line for each row."""
    versions, rows = data["versions"], data["rows"]
    heads = ["model type", "task", *TITLES.values(), "adapted, and what stops the rest"]
    lines = [
        f"{len(rows)} rows, transformers {versions['transformers']}, peft {versions['peft']}, "
        f"torch {versions['torch']}. {MARKS['yes']} yes, {MARKS['no']} no, {MARKS['unknown']} "
        f"could not be shown, {MARKS['unreached']} not tried because the model does not build.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for row in rows:
        marks = [MARKS[row["cells"].get(name, ["yes"])[0]] for name in TITLES]
        cells = [f"`{row['type']}`", row["task"], *marks, _details(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _details(row: Mapping[str, Any]) -> str:
    """The class, what the recipe adapts, and why a cell is not ``yes``, each reason once."""
    parts = [f"`{row['class']}`"] if row["class"] else []
    for entries in row["recipe"].values():
        parts.append(", ".join(f"`{_cell(one)}`" for one in _listed(entries)))
    reasons: dict[str, list[str]] = {}
    for name, (status, *reason) in row["cells"].items():
        if reason and status != "unreached":
            reasons.setdefault(reason[0], []).append(TITLES[name])
    parts += [f"{', '.join(names)}: {_text(reason)}" for reason, names in reasons.items()]
    return "<br>".join(parts)


def _listed(entries: Any) -> list[str]:
    return [entries] if isinstance(entries, str) else [str(one) for one in entries]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def _text(text: str) -> str:
    """What an exception says, as text: neither Markdown nor HTML."""
    for sign in "\\`*_{}[]<>|#~$":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


if __name__ == "__main__":
    FILE.write_text(written(load(Path(sys.argv[1]))), encoding="utf-8")
