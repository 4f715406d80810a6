"""The table of recipe keys in docs/check.md, written from `recipe/keys.py`.

`python -m tools.pages` puts it in its place; a test fails when the committed one is stale.
"""

from __future__ import annotations

import re
import textwrap

from lora_doctor.recipe.keys import KEYS, PREFIXED, RecipeKey

#: The place of the table on its page.
PLACE = re.compile(r"(<!-- recipe keys -->\n)(.*?)(\n<!-- end of recipe keys -->)", re.DOTALL)


def table() -> str:
    """Every key that is checked, with its option and its aliases, as a Markdown table."""
    rows = ["| option | | other names in a file |", "|---|---|---|"]
    rows += [_row(key) for key in KEYS if key.option]
    without = ", ".join(f"`{key.name}`" for key in KEYS if not key.option)
    closing = (
        f"In a file or a mapping only: {without}, and every other field of the installed "
        "`LoraConfig`."
    )
    return "\n".join([*rows, "", *textwrap.wrap(closing, 100, break_on_hyphens=False)])


def fresh(page: str) -> str:
    """The page with the table as it is now."""
    return PLACE.sub(lambda match: match[1] + table() + match[3], page)


def _row(key: RecipeKey) -> str:
    assert key.option is not None
    spellings = ", ".join(f"`{name}`" for name in (key.spelling, *key.option.aliases))
    same = key.spelling == f"--{key.name.replace('_', '-')}"
    prefixed = [name for name, meant in PREFIXED.items() if meant == key.name]
    names = [*([] if same else [key.name]), *key.aliases, *prefixed]
    cells = (spellings, key.option.help, ", ".join(f"`{name}`" for name in names))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
