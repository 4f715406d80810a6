"""A set-up: a script in one of the styles that people use, as it is or with edits, and what a dry
run of it has to say."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "scripts"
#: Programs in the place of which the interpreter's own folder has one.
_PYTHON = "python"


@dataclass(frozen=True)
class Setup:
    """``command``: what stands behind ``--``; a single file is given as it is. ``edits``: old text
    to new in the script, each old text there once. ``needs``: modules without which it does not
    run. ``expects``: rules of which each must be found; empty where the set-up is healthy.
    ``sample``: whether it belongs to the few that every test run takes."""

    name: str
    script: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    edits: tuple[tuple[str, str], ...] = ()
    expects: tuple[str, ...] = ()
    sample: bool = False

    @property
    def lacking(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def write(self, root: Path) -> None:
        """The script and what it reads beside the models and data that are in the folder."""
        text = (SCRIPTS / self.script).read_text(encoding="utf-8")
        for old, new in self.edits:
            if text.count(old) != 1:
                times = text.count(old)
                raise ValueError(f"{self.name}: {old!r} is {times} times in {self.script}")
            text = text.replace(old, new)
        if self.script == "notebook.py":
            write_notebook(root / "notebook.ipynb", text)
        else:
            (root / self.script).parent.mkdir(exist_ok=True)
            (root / self.script).write_text(text, encoding="utf-8")
        for word in self.command:
            if word.endswith(".yaml") and word != self.script:  # beside the script: a launcher's
                shutil.copy(SCRIPTS / word, root)
        if self.script == "hydra_train.py":
            shutil.copytree(SCRIPTS / "conf", root / "conf", dirs_exist_ok=True)

    @property
    def words(self) -> tuple[str, ...]:
        """The command, with this interpreter and the programs beside it."""
        beside = Path(sys.executable).parent
        first = self.command[0]
        if first == _PYTHON:
            return (sys.executable, *self.command[1:])
        if (beside / first).exists():
            return (str(beside / first), *self.command[1:])
        return self.command


def write_notebook(path: Path, script: str) -> None:
    """A notebook as Jupyter saves one, of a script with ``# %%`` between its cells."""
    cells = [cell.strip("\n") for cell in script.split("# %%\n") if cell.strip()]
    made = [
        {"cell_type": "code", "execution_count": None, "id": f"c{number}", "metadata": {},
         "outputs": [], "source": cell}
        for number, cell in enumerate(cells)
    ]  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.write_text(
        json.dumps(
            {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        ),
        encoding="utf-8",
    )


def healthy(
    name: str,
    script: str,
    *more: str,
    command: Sequence[str] = (),
    needs: tuple[str, ...] = (),
    edits: Mapping[str, str] | None = None,
    sample: bool = False,
) -> Setup:
    """A set-up in which nothing is wrong; ``more`` are arguments of the script."""
    words = tuple(command) or (_PYTHON, script, *more)
    return Setup(name, script, words, needs, tuple((edits or {}).items()), (), sample)


def broken(
    name: str, script: str, rules: str | tuple[str, ...], *more: str, **options: Any
) -> Setup:
    """A set-up in which something is wrong that these rules know; ``options`` as above."""
    expects = (rules,) if isinstance(rules, str) else rules
    return replace(healthy(name, script, *more, **options), expects=expects)
