"""Write what the documentation quotes: `python -m tools.pages`.

The pages of the rules, the table of recipe keys, and the output of commands, each as it is on the
installed stack. `python -m tools.pages LD2 LD404` writes the pages of these rules only,
`python -m tools.pages docs/commands.md` what that page quotes. Tests fail when a committed page is
stale, so the documentation never says anything else than the tool.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tools import quoted_output, recipe_table, rule_pages


def main(arguments: list[str]) -> int:
    if not quoted_output.ROOT.joinpath("pyproject.toml").is_file():
        print("tools.pages: not a checkout; clone the repository first", file=sys.stderr)
        return 2
    pages = [Path(name).resolve() for name in arguments if name.endswith(".md")]
    codes = tuple(name for name in arguments if not name.endswith(".md"))
    strange = [path for path in pages if path not in quoted_output.PAGES]
    if strange:
        print(f"tools.pages: {strange[0]}: is neither README.md nor in docs/", file=sys.stderr)
        return 2
    if codes or not arguments:
        rule_pages.write(rule_pages.own_rules(), codes)
    _write_quoted(pages if arguments else quoted_output.PAGES)
    return 0


def _write_quoted(pages: Iterable[Path]) -> None:
    """Each page with what it quotes as it is now; one that says so already is left alone."""
    for path in pages:
        before = path.read_text(encoding="utf-8")
        after = recipe_table.fresh(quoted_output.fresh(before))
        if after != before:
            path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
