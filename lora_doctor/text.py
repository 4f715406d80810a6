"""Text for people: what strangers wrote made visible, exceptions on one line, short paths."""

from __future__ import annotations

import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterable
from pathlib import Path

MESSAGE_CHARS = 500
#: Characters of what is quoted in the middle of a sentence.
_EXCERPT = 300
TRACEBACK_CHARS = 20_000
#: Parts of a path that FSDP, activation checkpointing and ``torch.compile`` put in.
_WRAPPERS = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})
GIB = 1 << 30
# The repr of a module: `Name(` and a first child on the next line.
_MODULE_REPR = re.compile(r"\b[A-Z]\w*\(\s*\n\s+\(\w+\): ")
_OURS = "lora_doctor/"
_LIBRARY_FRAMES = ("torch", "lora_doctor", "accelerate", "contextlib.py")


# Module names, config strings, file names and error messages come from strangers. Whatever could
# move the cursor, change the direction of writing or hide itself is shown as an escape instead.
#: Cc control (ANSI escapes, carriage return), Cf format (bidi overrides, zero width), Cs lone
#: surrogates, Zl and Zp line and paragraph separators.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_PLAIN = re.compile(r"[\x20-\x7e]*")
#: More combining marks than this on one letter only serve to paint over the neighbourhood.
_MOST_MARKS = 4


def visible(value: object, limit: int | None = 500, *, lines: bool = False) -> str:
    """``value`` as text in which every character can be seen, at most ``limit`` long.

    ``lines`` keeps line feeds (and tabs as spaces); otherwise they are shown as ``\\n``.
    """
    text = value if isinstance(value, str) else str(value)
    if limit is not None:
        text = shorten(text, limit)
    if _PLAIN.fullmatch(text):
        return text
    shown: list[str] = []
    marks = 0
    for character in text:
        if lines and character in "\n\t":
            shown.append("\n" if character == "\n" else "    ")
            continue
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category in _UNSEEN or marks > _MOST_MARKS:
            shown.append(character.encode("unicode_escape").decode("ascii"))
        else:
            shown.append(character)
    return "".join(shown)


def printable(text: str) -> str:
    """``text`` with a question mark for each character that moves a cursor or cannot be seen."""
    return "".join(character if character.isprintable() else "?" for character in text)


def shorten(text: str, limit: int) -> str:
    """``text`` with its middle cut out when it is longer than ``limit``: both ends tell most."""
    if len(text) <= limit:
        return text
    head = (limit * 2) // 3
    tail = max(limit - head - 1, 0)
    return f"{text[:head]}…{text[len(text) - tail :]}"


def visible_lines(text: str) -> str:
    """``text`` with every character that cannot be seen shown as an escape, but for what a text
    file is made of: tabs and ends of lines, with or without a carriage return."""
    if _PLAIN.fullmatch(text):
        return text
    *lines, last = text.split("\n")
    # A carriage return ends a line only before a line feed; alone it moves the cursor back.
    shown = [
        _visible_line(line.removesuffix("\r")) + ("\r" if line.endswith("\r") else "")
        for line in lines
    ]
    return "\n".join([*shown, _visible_line(last)])


def _visible_line(line: str) -> str:
    return "\t".join(visible(part, None) for part in line.split("\t"))


def clean_path(path: str) -> str:
    """A module path as the user knows it: without PEFT's wrapper in front and its inner names."""
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    while parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    if parts == ["base_model"]:
        return ""
    return ".".join(part for part in parts if part != "base_layer")


def single_line(text: str, limit: int | None = None, mark: str = "...") -> str:
    """``text`` without line breaks, at most ``limit`` characters, with ``mark`` for what is cut."""
    line = " ".join(text.split())
    return line if limit is None or len(line) <= limit else line[: limit - len(mark)] + mark


def excerpt(said: object) -> str:
    """Somebody else's code or message inside a message of ours: on one line, and not too long."""
    return single_line(str(said), _EXCERPT)


def must_be(error: Exception) -> str:
    """What a value has to be, of an error such as ``is a list of names``: ``must be a list of
    names``."""
    text = str(error)
    return f"must be {text[3:]}" if text.startswith("is ") else text


def size_in_words(size: int, decimals: int = 1) -> str:
    """Bytes such as ``13.2 GiB``; small sizes in MiB."""
    if size < GIB // 2:
        return f"{size / (1 << 20):.0f} MiB"
    return f"{size / GIB:.{decimals}f} GiB"


def gib(size: int | None) -> str:
    """Such as ``13.2 GiB``, small sizes in MiB; ``?`` where it is not known."""
    return "?" if size is None else size_in_words(size)


def one_line(error: BaseException, limit: int = MESSAGE_CHARS) -> str:
    """The message of an exception on one line, the repr of a whole module in it shortened.

    PEFT and torch put the callable into a ``TypeError``: hundreds of lines for a large model.
    """
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - exceptions of remote code may not be printable
        text = f"(no text: its __str__ raised {type(broken).__name__})"
    return single_line(_short_reprs(text), limit, "…")


def where(error: BaseException) -> str:
    """``file.py:line`` of the deepest frame in the user's, transformers' or PEFT's code.

    Frames of torch say little about the recipe and are taken when there is no other; ours never
    (empty then). Paths of installed packages start at the package.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    telling = [frame for frame in frames if not _is_library(frame.filename)]
    foreign = [frame for frame in frames if not short_file(frame.filename).startswith(_OURS)]
    if not (telling or foreign):
        return ""
    frame = (telling or foreign)[-1]
    return f"{short_file(frame.filename)}:{frame.lineno}"


def raised_at(error: BaseException) -> str:
    """``file.py:line`` of the innermost frame, whose ever it is; empty without one."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{short_file(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def calling_line() -> str:
    """``file.py:line`` of the code that is running, looked for as :func:`where` does; empty when
    only libraries are."""
    frame = sys._getframe(1)
    while frame is not None:
        if not _is_library(frame.f_code.co_filename):
            return f"{short_file(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def place_of(written: str) -> tuple[str, int] | None:
    """File and line of a place that :func:`where`, :func:`calling_line` or an observer has written
    as ``file.py:line``; ``None`` when it is empty."""
    file, _, line = written.rpartition(":")
    return (file, int(line)) if file and line.isdigit() else None


def traceback_text(error: BaseException) -> str:
    """The traceback; its end, where the innermost frames are, when it is very long."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return _short_reprs("".join(lines))[-TRACEBACK_CHARS:]


def _short_reprs(text: str) -> str:
    """``text`` with every multi-line module repr cut to ``Name(…)``."""
    start = 0
    while match := _MODULE_REPR.search(text, start):
        opening = text.index("(", match.start())
        depth, end = 0, opening
        for end in range(opening, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                break
        text = f"{text[:opening]}(…){text[end + 1 :]}"
        start = opening + 3
    return text


def _is_library(filename: str) -> bool:
    short = short_file(filename)
    return short.split("/")[0] in _LIBRARY_FRAMES or filename.startswith("<")


def short_file(filename: str) -> str:
    """A file of a traceback: of an installed package, or of ours, from the package on."""
    parts = Path(filename).parts
    for folder in ("site-packages", "dist-packages", "transformers_modules"):
        if folder in parts:
            last = len(parts) - 1 - parts[::-1].index(folder)
            return "/".join(parts[last + 1 :])
    if "lora_doctor" in parts[:-1]:
        return "/".join(parts[parts.index("lora_doctor") :])
    return parts[-1] if parts and parts[-1] == "contextlib.py" else filename


def quoted(names: Iterable[str], limit: int = 12) -> str:
    """Names for a sentence, the first ``limit`` of them."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def short_path(file: str) -> str:
    """A file of the user's as they would write it here: relative where it lies below."""
    try:
        relative = os.path.relpath(file)
    except ValueError:  # another drive
        return file
    return file if relative.startswith(os.pardir) else relative
