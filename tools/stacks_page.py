"""`docs/stacks.md`, written from what the scenario tests recorded.

`python -m tools.stacks_page FILES`; each file holds the lines of one or more stacks (see
`tests/scenario.py`). Nothing is filled in: a cell without a record says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

PAGE = Path(__file__).resolve().parent.parent / "docs" / "stacks.md"
NOT_RUN = "not run"
#: What a cell says where a fix was needed that is applied only on demand.
ON_DEMAND = " with --unsafe-fixes"
HEAD = """\
<!-- Written by `nox -s scenarios stacks` from what the scenario tests recorded. Do not edit. -->

# Failures by stack

Every failure of the five reports that this project was started from, tried on five stacks with
tiny models, the real PEFT and the real bitsandbytes, on a CPU. "found, fixed": the rule found it,
its fix was applied, and the recipe trained afterwards. "found, fixed with --unsafe-fixes": the
same, with a fix that is applied only on demand, because it may change what is learnt, memory or
speed. "found, fixed by hand": the fix is a step in words; it was followed, and the result trained.
"does not occur": the rule was asked and was silent. `nox -s scenarios stacks` runs it all and
writes this page.
"""


def read(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The records of all files, in order."""
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line]


def page(records: Iterable[Mapping[str, Any]]) -> str:
    """The page: a table for each report, a row for each failure, a column for each stack."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    stacks: dict[str, Version] = {}
    for item in records:
        stack = column(item)
        stacks[stack] = Version(item["stack"]["transformers"])
        key = (item["report"], item["failure"], item["rule"])
        cells.setdefault(key, {})[stack] = item["outcome"]
    columns = sorted(stacks, key=lambda name: stacks[name])
    lines = [HEAD]
    for report in sorted({key[0] for key in cells}):
        lines += [f"## {report}", "", _row(["failure", "rule", *columns])]
        lines.append("|" + "---|" * (len(columns) + 2))
        for key in sorted(key for key in cells if key[0] == report):
            row = [cells[key].get(stack, NOT_RUN) for stack in columns]
            lines.append(_row([key[1], key[2], *row]))
        lines.append("")
    return "\n".join(lines)


def column(record: Mapping[str, Any]) -> str:
    """The heading of the stack that a record is of."""
    stack = record["stack"]
    return f"transformers {stack['transformers']}, peft {stack['peft']}"


def cell(record: Mapping[str, Any]) -> str | None:
    """What the page says where this record belongs; `None` for a stack that has no column, or
    before there is a page. A row that is missing is an empty text."""
    if not PAGE.exists():
        return None
    _, _, table = PAGE.read_text(encoding="utf-8").partition(f"## {record['report']}\n")
    rows = [line for line in table.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    heads = _cells(rows[0]) if rows else []
    if column(record) not in heads:
        return None
    start = _row([record["failure"], record["rule"]])
    found = [row for row in rows if row.startswith(start)]
    return _cells(found[0])[heads.index(column(record))] if found else ""


def tells_on_demand() -> bool:
    """Whether the page was written when records said which fixes are applied only on demand."""
    return PAGE.exists() and ON_DEMAND in PAGE.read_text(encoding="utf-8")


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(text.replace("|", "&#124;") for text in cells) + " |"


def _cells(row: str) -> list[str]:
    return [text.strip() for text in row.strip("| ").split(" | ")]


def main(arguments: list[str]) -> int:
    if not arguments:
        print("tools.stacks_page: give the files that LORA_DOCTOR_STACKS named", file=sys.stderr)
        return 2
    PAGE.write_text(page(read(map(Path, arguments))), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
