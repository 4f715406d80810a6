"""Results where people look at them in Python: printed, at the prompt, in a notebook."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterable
from typing import Any

from lora_doctor.results.secrets import hidden_in
from lora_doctor.text import printable


def report_text(diagnosis: Any) -> str:
    """The report of the command line: no colour, as wide as the terminal, or 100 columns."""
    columns = shutil.get_terminal_size((100, 24)).columns
    # Characters that standard output lacks are replaced: print must not fail on a check mark.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = _render(diagnosis, "full", width=max(min(columns, 120), 40), encoding=encoding)
    return text.rstrip("\n")


def report_cell(diagnosis: Any) -> str:
    """The HTML report for a cell of a notebook.

    The page is framed: its styles stay inside, nothing in it runs, and what it quotes from a model
    or a recipe is escaped once by the report and once for the attribute that holds it. Where a
    viewer drops frames, the line above the frame remains.
    """
    from html import escape

    page = escape(_render(diagnosis, "html"), quote=True)
    return (
        f"<div>{escape(repr(diagnosis))}</div>\n"
        f'<iframe sandbox title="lora-doctor report" srcdoc="{page}" '
        'style="width: 100%; height: 40em; border: 1px solid #888;"></iframe>'
    )


def one_line(parts: Iterable[object]) -> str:
    """The parts on one line, without characters that move a cursor."""
    return printable(" ".join(str(part) for part in parts if str(part)))


def _render(diagnosis: Any, format: str, *, width: int = 80, encoding: str = "utf-8") -> str:
    # By name: a format reads the diagnosis, so what the diagnosis imports cannot import formats.
    # Our own module and not whatever the installed packages add: a broken one of theirs is no
    # reason why a diagnosis cannot be printed.
    report = importlib.import_module(f"lora_doctor.reports.{format}")
    shared = hidden_in(diagnosis)
    text = report.render(shared, color=False, width=width, verbose=False, encoding=encoding)
    return str(text)
