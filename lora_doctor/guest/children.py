"""Python processes that a process of the session starts without a guest are refused beforehand."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lora_doctor.guest.session import STOPPED, Session

_PYTHON = re.compile(r"python(w|\d+(\.\d+)*)?(\.exe)?", re.IGNORECASE)
#: Options with which Python reads neither PYTHONPATH nor a sitecustomize.
_DEAF = frozenset("IES")
#: Options that take the rest of their word with them, or the next word where there is none.
_WITH_WORD = frozenset("WX")
_LONG_WITH_WORD = "--check-hash-based-pycs"
#: Options that name the program; what follows is the program's own.
_PROGRAM = frozenset("mc")


def is_python(word: str) -> bool:
    """Whether the name of a program is that of a Python interpreter."""
    return bool(_PYTHON.fullmatch(os.path.basename(word)))


def own_options(words: Sequence[str]) -> list[str]:
    """The interpreter's own options, of what follows its name on a command line; those that name a
    program (``-m``, ``-c``) and everything after are not among them."""
    return _options(words)[0]


def deaf_option(words: Sequence[str]) -> str | None:
    """The option with which an interpreter does not start a guest; ``None`` where none does."""
    return next((f"-{letter}" for letter in sorted(_options(words)[1] & _DEAF)), None)


def _options(words: Sequence[str]) -> tuple[list[str], set[str]]:
    """The words that are options of the interpreter, and the letters that are."""
    found: list[str] = []
    letters: set[str] = set()
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        word = rest.pop(0)
        value_follows = word == _LONG_WITH_WORD
        for place, letter in enumerate("" if word.startswith("--") else word[1:], 1):
            if letter in _PROGRAM:
                return [*found, word[:place]] if place > 1 else found, letters
            if letter in _WITH_WORD:
                value_follows = place == len(word) - 1
                break
            letters.add(letter)
        found += [word, *rest[:value_follows]]
        del rest[:value_follows]
    return found, letters


def watch_children(session: Session) -> None:
    """Stop this process where it is about to start a Python that would have no guest."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            executable, words, _, environment = arguments
        elif event in ("os.exec", "os.posix_spawn"):
            executable, words, environment = arguments
        else:
            return
        reason = _why_deaf(session, executable, words, environment)
        if reason:
            os.write(2, f"lora-doctor: {reason}; stopped\n".encode(errors="replace"))
            _tell(session, reason)
            os._exit(STOPPED)

    sys.addaudithook(look)


def _tell(session: Session, reason: str) -> None:
    from lora_doctor.guest.journal import Journal

    Journal(session).tell("refused", reason=reason)


def _why_deaf(session: Session, executable: Any, words: Any, environment: Any) -> str:
    """Why the program that is about to be started would have no guest; empty where it has one, or
    is no Python."""
    line = [os.fsdecode(word) for word in ([words] if isinstance(words, (str, bytes)) else words)]
    name = os.fsdecode(executable) if executable else (line[0] if line else "")
    if not is_python(name):
        return ""
    option = deaf_option(line[1:])
    if option:
        return f"{' '.join(line)[:200]} starts Python with {option}, which lets no guest in"
    given: Mapping[Any, Any] = os.environ if environment is None else environment
    texts = {os.fsdecode(key): os.fsdecode(value) for key, value in dict(given).items()}
    if session.reaches(texts):
        return ""
    return f"{' '.join(line)[:200]} is started without PYTHONPATH as it was, and has no guest"
