"""Where the installed packages say a message: which file, in which function, on what condition.

Their sources are read and not imported. A message is found by what is written out of it: the texts
of ``raise``, ``assert`` and of warnings, between the parts that are filled in.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.limits import INSTALLED_FILES
from lora_doctor.static.installed.environment import (
    installed_text,
    installed_version,
    package_folder,
)

#: What a LoRA run calls. The folders of models are left out: thousands of files.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "peft": (), "trl": (), "bitsandbytes": (), "accelerate": ("test_utils",),
    "transformers": ("models",),
}  # fmt: skip
#: So many characters of a message are looked up.
_LONGEST = 2_000
#: Only files that hold some words of the message in a row are parsed: so many words, and so many
#: places of the message.
_WORDS, _PIECES = 4, 12
#: What has to be written out of a message, in characters: so many and this share of it, or enough.
_LEAST, _SHARE, _ENOUGH = 30, 0.4, 60
_QUOTED = 160
_ERROR = re.compile(r"^[ \t]*[\w.]*(?:Error|Exception|Warning)\b[ \t]*:[ \t]*", re.MULTILINE)
_FILLED = re.compile(r"\{[^{}]*\}|%(?:\(\w+\))?[-#0 +]*\d*(?:\.\d+)?[sdrifgx]")
_WARNS = ("warn", "warning", "warning_once", "warning_advice", "warn_once", "error")


@dataclass(frozen=True)
class RaisedMessage:
    """A place in an installed package that says a message."""

    #: The package.
    package: str
    #: Its installed release.
    version: str
    #: The file.
    file: Path
    #: Line of the statement.
    line: int
    #: The class and function around it, such as ``LoraConfig.__post_init__``.
    function: str
    #: What holds there, as it is written; empty where nothing has to.
    condition: str
    #: Whether it is a warning and no error.
    warns: bool
    #: How many other places say the same.
    others: int

    @property
    def place(self) -> str:
        """The file from its package on, and the line."""
        folder = package_folder(self.package)
        inside = self.file.relative_to(folder).as_posix() if folder else self.file.name
        return f"{self.package}/{inside}:{self.line}"

    def as_traceback(self, text: str) -> str:
        """A text without frames with the one that it has when this place says it; any other as it
        is."""
        if "Traceback (most recent call last)" in text or 'File "' in text:
            return text
        function = self.function.rpartition(".")[2] or "<module>"
        return (
            "Traceback (most recent call last):\n"
            f'  File "{self.file}", line {self.line}, in {function}\n{text}'
        )


def raised_message(text: str) -> RaisedMessage | None:
    """The place that says the last message of a pasted text; ``None`` where no package does.

    Of several that fit, the one of whose words the message has most; of those that say the same,
    LoRA's before that of another method of PEFT.
    """
    message = _message(text)
    pieces = _pieces(message)
    best: list[tuple[str, Path, _Said]] = []
    most = 1
    for package, without in _PACKAGES.items():
        for file, source in _sources(package, without):
            if not any(piece.search(source) for piece in pieces):
                continue
            for said in _said_in(source):
                written = _written(said.parts, message)
                if written > most:
                    best, most = [], written
                if written == most:
                    best.append((package, file, said))
    if not best:
        return None
    package, file, said = min(best, key=lambda one: _is_of_another_method(one[1]))
    return RaisedMessage(
        package, installed_version(package) or "", file, said.node.lineno, said.function,
        said.condition, said.warns, len(best) - 1,
    )  # fmt: skip


def _message(text: str) -> str:
    """The last error or warning of a text without its class, or all of a text without one."""
    found = list(_ERROR.finditer(text))
    return _plain(text[found[-1].end() :] if found else text)[:_LONGEST]


def _is_of_another_method(file: Path) -> bool:
    return file.parent.parent.name == "tuners" and file.parent.name != "lora"


def _plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def _pieces(message: str) -> list[re.Pattern[str]]:
    """Words in a row, at some places of the message; in a source quotation marks and line ends may
    stand between them."""
    words = [word.strip(".,:;()'\"") for word in message.split(" ")]
    rows = [words[start : start + _WORDS] for start in range(max(1, len(words) - _WORDS + 1))]
    plain = [row for row in rows if len(row) > 1 and all(word.isidentifier() for word in row)]
    return [re.compile(r"\W+".join(row)) for row in plain[:: max(1, len(plain) // _PIECES)]]


def _sources(package: str, without: tuple[str, ...]) -> tuple[tuple[Path, str], ...]:
    folder = package_folder(package)
    return () if folder is None else _read(folder, without)


@functools.cache
def _read(folder: Path, without: tuple[str, ...]) -> tuple[tuple[Path, str], ...]:
    """The files of a package with their texts."""
    files = sorted(folder.glob("*.py"))
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if inner.name not in without:
            files += sorted(inner.rglob("*.py"))
    return tuple((file, installed_text(file)) for file in files[:INSTALLED_FILES])


@dataclass(frozen=True)
class _Said:
    """A statement that says something: ``parts`` are what is written out of the text."""

    node: ast.stmt | ast.expr
    parts: tuple[str, ...]
    function: str
    condition: str
    warns: bool


def _said_in(source: str) -> list[_Said]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    reader = _Reader()
    reader.visit(tree)
    return reader.found


class _Reader(ast.NodeVisitor):
    """Collects what the statements of a module say."""

    def __init__(self) -> None:
        self.found: list[_Said] = []
        self._scopes: list[str] = []
        self._conditions: list[str] = [""]
        self._texts: dict[str, ast.expr] = {}

    def _scope(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._scopes.append(node.name)
        self._conditions.append("")
        self.generic_visit(node)
        self._conditions.pop()
        self._scopes.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _scope

    def visit_If(self, node: ast.If) -> None:
        test = ast.unparse(node.test)
        for condition, body in ((test, node.body), (f"not ({test})", node.orelse)):
            self._conditions.append(condition)
            for statement in body:
                self.visit(statement)
            self._conditions.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._texts[target.id] = node.value
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        if isinstance(node.exc, ast.Call) and node.exc.args:
            self._say(node, node.exc.args[0])

    def visit_Assert(self, node: ast.Assert) -> None:
        if node.msg is not None:
            self._conditions.append(f"not ({ast.unparse(node.test)})")
            self._say(node, node.msg)
            self._conditions.pop()

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", "")
        if name in _WARNS and node.args:
            self._say(node, node.args[0], warns=True)
        self.generic_visit(node)

    def _say(self, node: ast.stmt | ast.expr, text: ast.expr, *, warns: bool = False) -> None:
        parts = tuple(part for part in map(_plain, self._parts(text)) if len(part) > 2)
        if sum(map(len, parts)) >= _LEAST:
            condition = self._conditions[-1]
            short = condition if len(condition) <= _QUOTED else f"{condition[: _QUOTED - 1]}…"
            self.found.append(_Said(node, parts, ".".join(self._scopes), short, warns))

    def _parts(self, text: ast.expr, depth: int = 8) -> list[str]:
        """What is written out, a part before and behind each gap."""
        if depth == 0:
            return []
        if isinstance(text, ast.Constant):
            return _FILLED.split(text.value) if isinstance(text.value, str) else []
        if isinstance(text, ast.JoinedStr):
            return _joined(text)
        if isinstance(text, ast.BinOp) and isinstance(text.op, ast.Add):
            return [*self._parts(text.left, depth - 1), *self._parts(text.right, depth - 1)]
        if isinstance(text, ast.BinOp) and isinstance(text.op, ast.Mod):
            return self._parts(text.left, depth - 1)
        if isinstance(text, ast.Call) and getattr(text.func, "attr", "") == "format":
            assert isinstance(text.func, ast.Attribute)
            return self._parts(text.func.value, depth - 1)
        if isinstance(text, ast.Name) and text.id in self._texts:
            return self._parts(self._texts[text.id], depth - 1)
        return []


def _joined(text: ast.JoinedStr) -> list[str]:
    """The constants of an f-string; two in a row are one text."""
    parts = [""]
    for value in text.values:
        if isinstance(value, ast.Constant):
            parts[-1] += str(value.value)
        else:
            parts.append("")
    return parts


def _written(parts: tuple[str, ...], message: str) -> int:
    """How many characters of the message a text writes out; 0 where it is another message."""
    place = 0
    for part in parts:
        found = message.find(part, place)
        if found < 0:
            return 0
        place = found + len(part)
    written = sum(map(len, parts))
    return written if written >= min(_ENOUGH, _SHARE * len(message)) else 0
