"""Write `docs/stacks.md` from what the scenario tests recorded: `python -m tests.stacks_page FILES`.

Each file holds the lines of one or more stacks (see `tests/scenario.py`). Nothing is filled in: a
cell without a record says so.
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
HEAD = """\
<!-- Written by `python -m tests.stacks_page` from what the scenario tests recorded. Do not edit. -->

# Failures by stack

Every failure of the five reports that this project was started from, tried on five stacks with
tiny models, the real PEFT and the real bitsandbytes, on a CPU. "found, fixed": the rule found it,
its fix was applied, and the recipe trained afterwards. "found, fixed by hand": the fix is a step
in words; it was followed, and the result trained. "does not occur": the rule was asked and
was silent, and the recipe trained as it is. `nox -s stacks` runs it all and writes this page.
"""


def read(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The records of all files, in order."""
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line]


def page(records: Iterable[Mapping[str, Any]]) -> str:
    """The page: a table for each report, a row for each failure, a column for each stack."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    stacks: dict[str, Version] = {}
    for item in records:
        stack = f"transformers {item['stack']['transformers']}, peft {item['stack']['peft']}"
        stacks[stack] = Version(item["stack"]["transformers"])
        key = (item["report"], item["failure"], item["rule"])
        cells.setdefault(key, {})[stack] = item["outcome"]
    columns = sorted(stacks, key=lambda name: stacks[name])
    lines = [HEAD]
    for report in sorted({key[0] for key in cells}):
        lines += [f"## {report}", "", f"| failure | rule | {' | '.join(columns)} |"]
        lines.append("|" + "---|" * (len(columns) + 2))
        for key in sorted(key for key in cells if key[0] == report):
            row = [cells[key].get(stack, NOT_RUN) for stack in columns]
            anchor = f"[{key[2]}](rules.md#{key[2].lower()})"
            lines.append("| " + " | ".join([key[1].replace("|", "\\|"), anchor, *row]) + " |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if not arguments:
        print("tests.stacks_page: give the files that LORA_DOCTOR_STACKS named", file=sys.stderr)
        return 2
    PAGE.write_text(page(read(map(Path, arguments))), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
