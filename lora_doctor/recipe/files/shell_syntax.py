"""A shell script as words with their places: enough of the language to read a training command.

Quotes, line continuations, comments, here-documents, variables and their defaults are followed.
Nothing is run: what a command substitution or an argument of the script gives is not known, but
for arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lora_doctor.recipe.files.shell_arithmetic import arithmetic

#: Suffixes of files that a shell runs.
SHELLS = frozenset({".sh", ".bash", ".zsh", ".ksh", ".command", ".sbatch", ".slurm"})
#: Programs that run them.
SHELL_PROGRAMS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_ASSIGNMENT = re.compile(rf"({_NAME})=")
_VARIABLE = re.compile(
    rf"\$(?:(?P<plain>{_NAME}|[0-9@*#?$!-])|\{{(?P<name>{_NAME}|[0-9]+)"
    r"(?::?[-=](?P<default>[^{}]*))?\}|(?P<other>[({]))"
)
_END = re.compile(r"\|\||&&|;;?|\||&(?!>)|\n")
_REDIRECTION = re.compile(r"[0-9]*(?:&>>?|>>?|<<<|<)(?:&[0-9-]+)?")
#: ``ARGS=(`` and ``ARGS+=(``; ``"${ARGS[@]}"`` as a word of its own.
_ARRAY = re.compile(rf"({_NAME})(\+?)=\(")
_ITEMS = re.compile(rf"\"?\$\{{({_NAME})\[[@*]\]\}}\"?(?=[\s;|)&]|\Z)")
#: The arguments of the script itself, which is read as if it were started without.
_OWN = re.compile(r"\"?\$(?:[@*]|\{[@*](?::[^}]*)?\})\"?(?=[\s;|)&]|\Z)")
#: Characters of a variable: one that is made of itself again and again grows without end.
_LONGEST = 20_000
_HERE = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")


@dataclass(frozen=True)
class Word:
    """One word of a command: its text, with quotes gone and variables filled in."""

    #: ``None`` where only the shell knows what it will be.
    text: str | None
    start: int
    end: int
    #: The variables that it uses.
    variables: tuple[str, ...] = ()
    #: Whether the whole word is one variable (``$RANK``, ``"${RANK}"``).
    is_variable: bool = False


@dataclass(frozen=True)
class Command:
    """A simple command: the variables set for it, and its words."""

    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]


def commands(text: str, outside: Mapping[str, str]) -> list[Command]:
    """The commands of the script in their order, with variables as the lines before set them.
    ``outside``: the environment that the script is started in."""
    reader = _Reader(text, outside)
    return reader.read()


def hands_on_its_arguments(text: str) -> bool:
    """Whether a command of the script gets the words that the script is started with (``"$@"``)."""
    reader = _Reader(text, {})
    reader.read()
    return reader.hands_on


class _Reader:
    """Walks through the text once."""

    def __init__(self, text: str, outside: Mapping[str, str]) -> None:
        self.text = text
        self.variables: dict[str, str | None] = dict(outside)
        self.position = 0
        self.found: list[Command] = []
        self.words: list[Word] = []
        self.arrays: dict[str, list[Word]] = {}
        self.here: list[str] = []
        self.hands_on = False

    def read(self) -> list[Command]:
        while self.position < len(self.text):
            self._step()
        self._finish()
        return self.found

    def _step(self) -> None:
        text, position = self.text, self.position
        character = text[position]
        if continued := _continuation(text, position):
            self.position = continued
        elif character in " \t\r":
            self.position += 1
        elif character == "#":
            end = text.find("\n", position)
            self.position = len(text) if end < 0 else end
        elif self._several():
            pass
        elif here := _HERE.match(text, position):
            self.here.append(here[2])
            self.position = here.end()
        elif character in "()" or (end_of := _END.match(text, position)):
            self.position = position + 1 if character in "()" else end_of.end()  # type: ignore[union-attr]
            self._finish()
            if character == "\n":
                self._skip_here_documents()
        elif redirection := _REDIRECTION.match(text, position):
            self.position = redirection.end()
            if not redirection[0].endswith(tuple("0123456789-")) or "&" not in redirection[0]:
                self._skip_space()
                self._word()
        else:
            self.words.append(self._word())

    def _several(self) -> bool:
        """What stands for several words: an array that is set or used, the script's arguments."""
        text, position = self.text, self.position
        if array := _ARRAY.match(text, position):
            self._array(array)
            return True
        if (items := _ITEMS.match(text, position)) and items[1] in self.arrays:
            self.words += self.arrays[items[1]]
            self.position = items.end()
            return True
        if own := _OWN.match(text, position):
            self.position = own.end()
            self.hands_on = True
        return own is not None

    def _array(self, found: re.Match[str]) -> None:
        """The words of an array, which stand for ``"${NAME[@]}"``."""
        words = self.arrays.setdefault(found[1], []) if found[2] else []
        self.arrays[found[1]] = words
        self.position = found.end()
        while self.position < len(self.text) and self.text[self.position] != ")":
            character = self.text[self.position]
            if character == "#":
                end = self.text.find("\n", self.position)
                self.position = len(self.text) if end < 0 else end
            elif character in " \t\r\n":
                self.position += 1
            else:
                self.position = _continuation(self.text, self.position) or self.position
                if self.text[self.position : self.position + 1] not in ("", ")", *" \t\r\n#"):
                    words.append(self._word())
        self.position += 1

    def _skip_space(self) -> None:
        while self.text[self.position : self.position + 1] in (" ", "\t"):
            self.position += 1

    def _skip_here_documents(self) -> None:
        for word in self.here:
            end = re.compile(rf"^\s*{re.escape(word)}\r?$", re.MULTILINE).search(
                self.text, self.position
            )
            self.position = end.end() if end else len(self.text)
        self.here = []

    def _finish(self) -> None:
        words, self.words = self.words, []
        assignments: list[tuple[str, Word]] = []
        if words and words[0].text in ("export", "declare", "local", "readonly", "set", "env"):
            words = [word for word in words[1:] if not (word.text or "").startswith("-")]
        while words:
            match = _ASSIGNMENT.match(self.text, words[0].start)
            if match is None or match.end() > words[0].end:
                break
            word = words.pop(0)
            value = None if word.text is None else word.text.partition("=")[2]
            assignments.append(
                (match[1], Word(value, match.end(), word.end, word.variables, word.is_variable))
            )
        if not words:
            for name, word in assignments:
                self.variables[name] = None if len(word.text or "") > _LONGEST else word.text
        if assignments or words:
            self.found.append(Command(tuple(assignments), tuple(words)))

    def _word(self) -> Word:
        start = self.position
        parts: list[str | None] = []
        variables: list[str] = []
        while self.position < len(self.text):
            character = self.text[self.position]
            if character in " \t\r\n;|()<>" or (character == "&" and parts):
                break
            if _continuation(self.text, self.position):
                break
            self._piece(parts, variables)
        if self.position == start:
            self.position += 1
        known = [part for part in parts if part is not None]
        written = self.text[start : self.position].strip('"')
        whole = _VARIABLE.fullmatch(written)
        return Word(
            "".join(known) if len(known) == len(parts) else None,
            start,
            self.position,
            tuple(variables),
            bool(whole and len(variables) == 1),
        )

    def _piece(self, parts: list[str | None], variables: list[str]) -> None:
        text, position = self.text, self.position
        character = text[position]
        if character == "'":
            end = text.find("'", position + 1)
            end = len(text) if end < 0 else end
            parts.append(text[position + 1 : end])
            self.position = end + 1
        elif character == '"':
            self.position += 1
            parts.append("")
            while self.position < len(text) and text[self.position] != '"':
                if text[self.position] == "\\" and text[self.position + 1 : self.position + 2] in (
                    '"', "\\", "$", "`", "\n",
                ):  # fmt: skip
                    parts.append(text[self.position + 1].replace("\n", ""))
                    self.position += 2
                else:
                    self._unquoted(parts, variables)
            self.position += 1
        elif character == "\\":
            parts.append(text[position + 1 : position + 2])
            self.position += 2
        else:
            self._unquoted(parts, variables)

    def _unquoted(self, parts: list[str | None], variables: list[str]) -> None:
        text, position = self.text, self.position
        if text[position] == "`":
            end = text.find("`", position + 1)
            self.position = len(text) if end < 0 else end + 1
            parts.append(None)
            return
        match = _VARIABLE.match(text, position) if text[position] == "$" else None
        if match is None:
            parts.append(text[position])
            self.position += 1
        elif match["other"]:
            self.position = _closing(text, match.end() - 1)
            value, names = arithmetic(text[match.end() - 1 : self.position], self.variables)
            variables += names
            parts.append(value)
        else:
            name = match["plain"] or match["name"]
            variables.append(name)
            parts.append(self.variables.get(name) or match["default"])
            self.position = match.end()


def _continuation(text: str, position: int) -> int:
    """Behind a backslash at the end of a line; 0 where there is none."""
    match = re.compile(r"\\\r?\n").match(text, position)
    return match.end() if match else 0


def _closing(text: str, position: int) -> int:
    """Behind the bracket that closes the one here."""
    opened, closed = text[position], {"(": ")", "{": "}"}[text[position]]
    depth = 0
    for place in range(position, len(text)):
        depth += (text[place] == opened) - (text[place] == closed)
        if depth == 0:
            return place + 1
    return len(text)
