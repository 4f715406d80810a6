"""Comments by which a file accepts a finding: ``# lora-doctor: ignore[LD203] both are meant``.

They stand at the end of the line of a setting, or on lines of their own directly above it, in YAML,
Python, shell scripts and the cells of a notebook. JSON has no comments.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.errors import InputError, LimitError
from lora_doctor.recipe.files.bytes import read_text
from lora_doctor.static.place import CELL, Place
from lora_doctor.static.program.notebook import code_cells, is_notebook

_COMMENT = re.compile(
    r"(?:^|(?<=\s))#\s*lora-doctor:\s*ignore\b[ \t]*(?:\[(?P<codes>[^\]\n]*)\])?(?P<reason>[^\n]*)",
    re.IGNORECASE,
)
_CODE = re.compile(r"[A-Z]+\d+")
_PYTHON = (".py", ".ipynb")


@dataclass(frozen=True)
class IgnoreComment:
    """One comment. ``lines``: of its file or cell, from 1, for which it holds. ``wrong``: why it
    accepts nothing; empty where it is as it should be."""

    place: Place
    codes: tuple[str, ...]
    reason: str
    lines: range
    wrong: str = ""


def read_ignores(file: str) -> list[IgnoreComment]:
    """The comments in a file, or in the cells of a notebook; none where it cannot be read, which
    whoever reads the recipe tells."""
    name = file.partition(CELL)[0]
    try:
        text = read_text(Path(name)).text
        if is_notebook(text):
            texts = [(f"{name}{CELL}{cell.number}", cell.text) for cell in code_cells(text, name)]
        else:
            texts = [(name, text)]
    except (InputError, LimitError):
        return []
    python = Path(name).suffix in _PYTHON
    return [one for where, part in texts for one in ignores_in(part, where, python=python)]


def ignores_in(text: str, file: str, *, python: bool = False) -> list[IgnoreComment]:
    """The comments of one text. ``python``: what stands inside a string is none."""
    if "lora-doctor" not in text.lower():
        return []
    lines = re.split(r"\r\n|\r|\n", text)
    comments = _python_comments(text) if python else None
    found = []
    for number, line in enumerate(lines, 1):
        hit = _COMMENT.search(line)
        if hit is None or (comments is not None and (number, hit.start()) not in comments):
            continue
        codes, wrong = _codes(hit["codes"])
        reason = hit["reason"].strip().lstrip(":-–—").strip()
        if not wrong and not reason:
            wrong = "give the reason behind it: # lora-doctor: ignore[LD203] both are meant"
        held = _lines_of(lines, number, alone=not line[: hit.start()].strip())
        found.append(IgnoreComment(Place(file, number), codes, reason, held, wrong))
    return found


def _codes(written: str | None) -> tuple[tuple[str, ...], str]:
    """The codes between the brackets, and what is wrong with them."""
    codes = tuple(code.strip().upper() for code in (written or "").split(",") if code.strip())
    if not codes:
        return (), "give the codes that it is for: # lora-doctor: ignore[LD203] both are meant"
    strange = next((code for code in codes if not _CODE.fullmatch(code)), None)
    return codes, f"{strange!r} is not the code of a rule, such as LD203" if strange else ""


def _lines_of(lines: list[str], number: int, *, alone: bool) -> range:
    """The comment's own line; of one that stands ``alone`` also the first line below that is no
    comment, with those that continue it behind a backslash."""
    if not alone:
        return range(number, number + 1)
    below = number
    while below < len(lines) and lines[below].lstrip().startswith("#"):
        below += 1
    last = below + 1
    while last < len(lines) and lines[last - 1].endswith("\\"):
        last += 1
    return range(number, last + 1)


def _python_comments(text: str) -> set[tuple[int, int]] | None:
    """Line and column of each comment; ``None`` where the text is no plain Python, as a cell with
    a magic command is not."""
    try:
        return set(_comment_starts(text))
    except (tokenize.TokenError, SyntaxError):
        return None


def _comment_starts(text: str) -> Iterator[tuple[int, int]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from (
                (token.start[0], token.start[1] + inner.start())
                for inner in re.finditer("#", token.string)
            )
