"""Write what the documentation quotes: `python -m tools.pages`.

The pages of the rules, the table of recipe keys, and the output of commands, each as it is on the
installed stack. `python -m tools.pages LD2 LD404` writes the pages of these rules only. Tests fail
when a committed page is stale, so the documentation never says anything else than the tool.
"""

from __future__ import annotations

import sys

from tools import quoted_output, recipe_table, rule_pages


def main(codes: list[str]) -> int:
    if not quoted_output.ROOT.joinpath("pyproject.toml").is_file():
        print("tools.pages: not a checkout; clone the repository first", file=sys.stderr)
        return 2
    rule_pages.write(rule_pages.own_rules(), tuple(codes))
    if not codes:
        for path in quoted_output.PAGES:
            before = path.read_text(encoding="utf-8")
            after = recipe_table.fresh(quoted_output.fresh(before))
            if after != before:
                path.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
