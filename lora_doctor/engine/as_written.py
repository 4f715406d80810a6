"""A pasted text as the program wrote it, before loggers, launchers, pages and mails.

They begin each line with something of their own, which then stands between the words of a message
that goes over several lines; and pages escape characters.
"""

from __future__ import annotations

import html
import re
from collections import Counter

_LEVEL = r"(?:INFO|WARN(?:ING)?|ERROR|DEBUG|CRITICAL)"
_TIME = r"\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
_DATE = r"(?:\d{4}[-/]\d\d[-/]\d\d|\d\d[-/]\d\d(?:[-/]\d{4})?)"
_PLACE = r"[\w./]{1,60}\.(?:py|cpp|cu):\d+"
#: What a line begins with, and its program did not write. The place that a logger adds is no frame;
#: a level alone, and the processes of a server, say what program it is.
_PREFIX = re.compile(
    rf"[ \t]*(?:(?:>[ \t]?)+(?![>=])"
    rf"|\[{_LEVEL}\|{_PLACE}\](?: ?{_DATE}[T ]{_TIME})?(?: ?>>)? ?"
    rf"|\[?(?:{_LEVEL} )?(?:{_DATE}[T ])?{_TIME}\]?(?:[ \-|:]*\[?{_LEVEL}\]?(?!\w))?"
    rf"(?:[ \-|:]*[\[(]?{_PLACE}[\])]?)?[ \-|:]*(?:>>)? ?"
    r"|std(?:err|out):[ \t]?|\[(?:rank|default)?\d+\]:[ \t]?"
    r"|\((?!EngineCore|APIServer|Worker)\w{0,40} ?pid=\d+[^()\n]{0,60}\)[ \t]?)"
)
#: So many of them may stand in a row.
_MOST = 4
#: The numbered name of a process, container or machine, if it is that of most lines.
_NAME = re.compile(r"[ \t]*[\w.\-]{0,60}\d[\w\-]{0,9}(?::|[ \t]*\|)[ \t]")
_NAMED_LINES, _NAMED_SHARE = 2, 0.8
#: Colours of a terminal, with the escape character or, as some pages show them, without it.
COLOURS = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]|\[\d+(?:;\d+)*m")
#: Spaces that do not break a line, and characters without width.
_SPACES = {0xA0: " ", 0x202F: " ", 0x200B: "", 0x200C: "", 0x2060: "", 0xFEFF: ""}
#: The ends of lines and the quotation marks in a text that was printed as a string of a program.
_IN_A_STRING = re.compile(r"\\([nt'\"])")
_MEANT = {"n": "\n", "t": "\t"}
_ENTITY = re.compile(r"&(?:#\d{1,5}|#x[\da-fA-F]{1,4}|quot|apos|lt|gt|amp|nbsp);")
#: A character that Markdown would take for its own, escaped.
_ESCAPED = re.compile(r"\\(?=[_*`<>\[\]#])")
_WINDOWS = re.compile(r"\b[A-Za-z]:\\\w")


def as_written(text: str) -> str:
    """The text without what others have put into it."""
    if _ENTITY.search(text):
        text = html.unescape(text)
    text = COLOURS.sub("", text).translate(_SPACES)
    if not _WINDOWS.search(text):
        if "\n" not in text.strip():
            text = _IN_A_STRING.sub(lambda found: _MEANT.get(found[1], found[1]), text)
        text = _ESCAPED.sub("", text)
    return "\n".join(_line(line) for line in _without_name(text.splitlines()))


def _line(line: str) -> str:
    for _ in range(_MOST):
        prefix = _PREFIX.match(line)
        if not prefix or not prefix[0].strip():
            break
        line = line[prefix.end() :]
    return line


def _without_name(lines: list[str]) -> list[str]:
    """The lines without the name with which most of them begin."""
    names = Counter(name[0] for name in map(_NAME.match, lines) if name)
    filled = sum(1 for line in lines if line.strip())
    if not names:
        return lines
    name, times = names.most_common(1)[0]
    if times < max(_NAMED_LINES, _NAMED_SHARE * filled):
        return lines
    return [line.removeprefix(name) for line in lines]
