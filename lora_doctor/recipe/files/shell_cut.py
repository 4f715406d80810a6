"""Commands of a shell script that end before their last arguments.

A backslash continues a line only as its last character. Without it, with a space or a carriage
return behind it, or with a comment or an empty line below it the command ends there, and the shell
looks for a program that is named like the next option. Where lines end as on Windows, the carriage
return is part of the last word.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from lora_doctor.recipe.cut import Cut
from lora_doctor.recipe.files.shell_syntax import Command, commands

_OPTION = re.compile(r"--[A-Za-z][\w-]*")
#: What may stand between the end of a command and the options that were meant for it.
_BETWEEN = re.compile(r"(?:[ \t\r]*\\?[ \t\r]*(?:#[^\n]*)?\n)+[ \t]*")
#: A backslash that does not end its line, and what stands behind it.
_ESCAPED = re.compile(r"[ \t]*\\[ \t]+(#[^\n]*)?\r?\Z")
#: Cuts that are looked for, and lines of options that are told of each.
_MOST = 100
_UNIX = "Convert the file to Unix line endings, for example with dos2unix."
_NUMBER = re.compile(r"[-+]?[0-9][0-9.eE+-]*")
_CARRIAGE_RETURN = re.compile(r"\\\r\n")


def cuts(text: str) -> list[Cut]:
    """The places at which commands of the script end too early, in their order."""
    found = [command for command in commands(text, {}) if command.words]
    every = itertools.chain(_ended(text, found), _by_carriage_returns(text, found))
    return sorted(itertools.islice(every, _MOST), key=lambda cut: cut.line)


def rejoined(text: str, found: Sequence[Cut] | None = None) -> str:
    """The text in which every command goes on to its last option, each other character where it
    was: what was meant. ``found``: its cuts, where they are known."""
    parts, position = [], 0
    for cut in cuts(text) if found is None else found:
        if cut.end > cut.start >= position:
            parts += [text[position : cut.start], " " * (cut.end - cut.start)]
            position = cut.end
    return "".join((*parts, text[position:]))


def of_command(
    text: str, start: int, end: int, found: Sequence[Cut] | None = None
) -> tuple[Cut, ...]:
    """Those of the command between these places of the text, as it was meant. ``found``: all of
    them, where they are known."""
    lines = range(text.count("\n", 0, start) + 1, text.count("\n", 0, end) + 2)
    return tuple(cut for cut in (cuts(text) if found is None else found) if cut.line in lines)


def _ended(text: str, found: Sequence[Command]) -> Iterator[Cut]:
    """Where the next command is an option of the one before."""
    begun = False
    for number, command in enumerate(found):
        name = command.words[0].text or ""
        if command.assignments or not _OPTION.match(name):
            begun = True
            continue
        before, next_one = found[number - 1].words[-1], command.words[0]
        if not begun or not _BETWEEN.fullmatch(text, before.end, next_one.start):
            continue
        if found[number - 1].words[0].text == "case":  # the option is its first pattern
            continue
        line_start = text.rfind("\n", 0, before.end) + 1
        line_end = text.index("\n", before.end)
        escaped = _ESCAPED.search(text[line_start:line_end])
        start = line_start + escaped.start() if escaped else before.end
        line, why, remedy = _reason(text, start, next_one.start, escaped)
        options = _options(found[number : number + _MOST])
        yield Cut(line, why, remedy, options, start, next_one.start,
                  stray=escaped is not None)  # fmt: skip


def _reason(text: str, start: int, end: int, escaped: re.Match[str] | None) -> tuple[int, str, str]:
    line = text.count("\n", 0, start) + 1
    lines = text[start:end].split("\n")
    if escaped:
        behind = "a comment" if escaped[1] else "a space"
        return line, f"has {behind} after its backslash", f"End line {line} with the backslash."
    if not lines[0].strip().startswith("\\"):
        return line, "does not end with a backslash", f"End line {line} with a backslash."
    line += 1
    if lines[1].strip():
        return line, "is a comment between two lines of the command", (
            f"Move line {line} out of the command.")  # fmt: skip
    return line, "is empty", f"Take line {line} out."


def _by_carriage_returns(text: str, found: Sequence[Command]) -> Iterator[Cut]:
    """Where lines end as on Windows: what a backslash quotes is the carriage return."""
    for number, command in enumerate(found):
        gaps = itertools.pairwise(command.words)  # in quotes it ends nothing
        returned = next((at for one, other in gaps if (at := _CARRIAGE_RETURN.search(
            text, one.end, other.start))), None)  # fmt: skip
        if returned is not None:
            behind = [word for word in command.words if word.start > returned.start()]
            options = _options([Command((), tuple(behind)), *found[number + 1 : number + _MOST]])
            line = text.count("\n", 0, returned.start()) + 1
            yield Cut(line, "ends with a carriage return, as on Windows, after its backslash",
                      _UNIX, options, stray=True)  # fmt: skip
        elif text.startswith("\r\n", command.words[-1].end):
            yield from _lengthened(text, command)


def _lengthened(text: str, command: Command) -> Iterator[Cut]:
    """A command with options whose last word takes the carriage return along; a number is read
    as the number that it is."""
    last, options = command.words[-1], _options([command])
    word = text[last.start : last.end]
    if options and not _NUMBER.fullmatch((last.text or word).rpartition("=")[2]):
        line = text.count("\n", 0, last.end) + 1
        yield Cut(line, "ends with a carriage return, as on Windows", _UNIX, (word,),
                  stray=bool(_OPTION.fullmatch(word)), returned=True)  # fmt: skip


def _options(found: Sequence[Command]) -> tuple[str, ...]:
    """The options of the first command, and of those behind it that begin with one."""
    names: list[str] = []
    for number, command in enumerate(found[:_MOST]):
        if number and (command.assignments or not _OPTION.match(command.words[0].text or "")):
            break
        matches = (_OPTION.match(word.text or "") for word in command.words)
        names += [match[0] for match in matches if match]
    return tuple(dict.fromkeys(names))
