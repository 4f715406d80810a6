"""From an error message to the rules that know it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from lora_doctor.engine.as_written import COLOURS
from lora_doctor.engine.rule import Rule, Symptom
from lora_doctor.limits import CLOCK, LOG, LOG_CHARACTERS, bounded, step

#: The text is searched in pieces of so many characters, each with half of the one before it: the
#: regular expression of a symptom may take time by the square of a piece's length. No message that
#: a symptom describes is longer than half a piece.
_PIECE = 6_000
#: Of a longer word (a tensor, base64) only the ends are kept: ``\w+`` in a symptom is tried at each
#: of its characters.
_WORD = 400
#: A frame of a traceback, as Python, IPython and rich write it; a link in between is a notebook's,
#: whose own frames are cells.
#: A warning names its place in the same way, and is no frame.
_FRAME = re.compile(
    r'File "([^"]{1,400})", line \d+'
    r"|([^\s\"\[\]()]{1,400}\.py)(?::\d+\b(?!: \w*Warning\b)|\]\(\S{1,200}\) in | in \w+\()"
    r"|(Cell In ?\[\d+\], line \d+|<ipython-input-[^>]{1,60}>(?=\]\(\S{1,200}\) in | in ))"
)
#: Frames that only hand on say nothing about who asked: those of the import system, and of
#: decorators that rename arguments.
_HANDS_ON = re.compile(
    r"<frozen importlib|[\\/]importlib[\\/]"
    r"|[\\/](?:transformers|huggingface_hub)[\\/]utils[\\/]_?deprecation\.py"
)
_TRACEBACK = "Traceback (most recent call last)"
#: What transformers writes before it repeats the error of an import that it made late.
_LOOK_UP = re.compile(r"\(look up to see its traceback\):\s*(?:[\w.]*(?:Error|Exception): )?$")
#: The lines of a training that runs: losses as the Trainer and the frameworks log them.
_STEPS = re.compile(
    r"'(?:train_)?loss': '?\d|\bloss=(?!0(?:\.0*)?(?!\d))\d|\btrain_runtime\b"
    r"|\*+ Running training \*+"
)
#: A path that a box around a traceback has cut in two.
_CUT_PATH = re.compile(
    r"(?<=[\w./\-:])[ \t]*[│┃][ \t]*\r?\n[ \t]*[│┃] (?=(?:[\w./\-]*\.py:)?\d+ in )"
)
#: What a launcher and such a box put between the words of a message: ``[rank0]:`` or
#: ``[default0]:`` before each line, borders.
_NOISE = re.compile(r"(?m:^[ \t]*\[(?:rank|default)?\d+\]: ?)|[│┃║╭╰╮╯─━❱]+")
#: ``__init__`` where Markdown took its underscores for bold letters.
_BOLD_INIT = re.compile(r"(?<![\w*])(\*\*)?init(?(1)\*\*)\(\)(?= (?:got|missing|takes)\b)")
#: What of a text a rule knows that goes by the code which raised it: the class of the error alone.
_CLASS_ALONE = re.compile(r"\s*[\w.]*(?:Error|Exception)\b:? ?\S?\s*")
#: In a regular expression: an escaped character, a class of characters, a backtick.
_BACKTICK = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|`\??", re.DOTALL)
#: Quotation marks as word processors write them, and the plain ones.
_STRAIGHT = {ord(mark): "'" for mark in "‘’‚‛"} | {ord(mark): '"' for mark in "“”„"}
#: A longer text is a log, and its words describe nothing.
_DESCRIPTION = 800
#: A warning with more lines than these around it, tables aside, was not pasted by itself.
_WARNING_LINES = 12


@dataclass(frozen=True)
class Match:
    """A rule whose symptom occurs in a text."""

    rule: type[Rule]
    line: str
    position: int
    #: Found by a description in words, not by a message of a library.
    described: bool = False
    #: The sentence of the rule that ``line`` was found to be like, if it was found so.
    like: str = ""

    @property
    def knows_class_alone(self) -> bool:
        """Whether what it knows of the text is the class of the error and no more."""
        return _CLASS_ALONE.fullmatch(self.line) is not None


@dataclass(frozen=True)
class NearMatch:
    """A rule that knows the words of a text, and what the text lacks to be this failure."""

    rule: type[Rule]
    line: str
    lacks: str

    @property
    def knows_class_alone(self) -> bool:
        """Whether what it knows of the text is the class of the error and no more."""
        return _CLASS_ALONE.fullmatch(self.line) is not None


def find_by_message(text: str, rules: Sequence[type[Rule]]) -> list[Match]:
    """Rules whose symptoms occur in the text, the likeliest first.

    In a traceback the last line is the exception, so what stands nearest to the end counts most. Of
    several rules that know the same words, one whose symptom is confirmed by the rest of the text
    (``context``) comes first, then the more frequent one (``weight``), then the longer match. What
    other failures bring with them (``consequence``) is named behind one of these, never alone.

    Of a long text the last ``LOG_CHARACTERS`` are searched.

    Raises:
        LimitError: the text is one that the regular expressions take too long for.
    """
    with bounded(LOG):
        return _likeliest(_pasted(text), [(rule, rule.symptoms) for rule in rules])


def find_by_description(text: str, rules: Sequence[type[Rule]]) -> list[Match]:
    """Rules that a short text describes in words, the likeliest first; none for a log or a text
    with a traceback, in which other words than the message are code.

    Raises:
        LimitError: as for ``find_by_message``.
    """
    if not is_told(text):
        return []
    with bounded(LOG):
        pasted = Pasted(text, re.IGNORECASE)
        found = _likeliest(pasted, [(rule, rule.descriptions) for rule in rules])
    return [replace(match, described=True) for match in found]


def is_told(text: str) -> bool:
    """Whether a text is short, and neither a log nor a traceback: its words are somebody's own."""
    if len(text) > _DESCRIPTION:
        return False
    pasted = Pasted(text)
    return not pasted.has_frames and not _STEPS.search(pasted.text)


def _likeliest(
    pasted: Pasted, known: Iterable[tuple[type[Rule], Sequence[Symptom]]]
) -> list[Match]:
    """The rules of which a symptom occurs, the likeliest first."""
    found = []
    for rule, symptoms in known:
        hits = [(symptom, hit) for symptom in symptoms for hit in pasted.hits(symptom)]
        if hits:
            symptom, best = max(hits, key=_rank)
            match = Match(rule, best[0][:200], best.end())
            found.append((_rank((symptom, best)), match))
    found.sort(key=lambda item: item[0], reverse=True)
    if not any(is_cause for (is_cause, *_), _ in found):
        return []
    return [match for _, match in found]


def find_near(text: str, rules: Sequence[type[Rule]]) -> list[NearMatch]:
    """Rules that know words of the text and are not behind it, for want of something that would
    have to be there; the one nearest to the end first.

    Raises:
        LimitError: as for ``find_by_message``.
    """
    with bounded(LOG):
        pasted = _pasted(text)
        found = []
        for rule in rules:
            for symptom in rule.symptoms:
                for hit in pasted.occurrences(symptom.pattern):
                    lacks = pasted.lacks(symptom, hit)
                    if not lacks and symptom.consequence:
                        lacks = "other failures bring it with them, and none of them is named"
                    near = NearMatch(rule, hit[0][:200], lacks)
                    # An error of the same class in other code has nothing to do with the rule.
                    elsewhere = near.knows_class_alone and pasted.raised_in(hit.start())
                    if lacks and not elsewhere:
                        found.append((hit.end(), near))
    nearest: dict[type[Rule], NearMatch] = {}
    for _, near in sorted(found, key=lambda item: item[0], reverse=True):
        nearest.setdefault(near.rule, near)
    return list(nearest.values())


def _pasted(text: str) -> Pasted:
    """A text to be searched for messages; what somebody quotes in a sentence of their own begins in
    lower case as often as not."""
    return Pasted(text, re.IGNORECASE if is_told(text) else 0)


class Pasted:
    """A pasted text on one line, and the frames of the tracebacks in it."""

    def __init__(self, text: str, flags: int = 0) -> None:
        self._flags = flags
        plain = _plain(text[-LOG_CHARACTERS:])
        self.text = " ".join(_shortened(word) for word in plain.split())
        lines = sum(1 for line in plain.splitlines() if line.strip() and "|" not in line)
        self._is_log = lines > _WARNING_LINES or _STEPS.search(self.text) is not None
        starts = range(0, max(len(self.text), 1), _PIECE // 2)
        self._pieces = [(start, start + _PIECE) for start in starts]
        frames = ((hit.end(), hit[1] or hit[2] or hit[3]) for hit in _FRAME.finditer(self.text))
        self._frames = [(end, file) for end, file in frames if not _HANDS_ON.search(file)]

    @property
    def last_step(self) -> int:
        """Where the last line of a training that runs ends: what stands before did not stop it."""
        return max((hit.end() for hit in _STEPS.finditer(self.text)), default=0)

    @property
    def has_frames(self) -> bool:
        return bool(self._frames) or _TRACEBACK in self.text

    def hits(self, symptom: Symptom) -> Iterator[re.Match[str]]:
        """Where the symptom occurs, with all that it asks for."""
        for hit in self.occurrences(symptom.pattern):
            if not self.lacks(symptom, hit):
                yield hit

    def occurrences(self, pattern: str) -> Iterator[re.Match[str]]:
        compiled = _compiled(pattern, self._flags)
        for start, end in self._pieces:
            step(CLOCK)
            yield from compiled.finditer(self.text, start, end)

    def lacks(self, symptom: Symptom, hit: re.Match[str]) -> str:
        """What the text around a hit lacks to be this failure; empty: nothing."""
        repeats = _LOOK_UP.search(self.text, max(0, hit.start() - 80), hit.start())
        if repeats and self.text.find(hit[0], 0, hit.start()) >= 0:
            return "it repeats the error above it"
        if symptom.raised_in:
            file = None if repeats else self.raised_in(hit.start())
            if file is None:
                return "it depends on the code that raised it: paste the whole traceback"
            if not re.search(symptom.raised_in, file):
                return f"that is raised in other code than {file}"
        if symptom.alone and self._frames and not repeats:
            return "the traceback shows other code"
        if symptom.aside and (self._is_log or self.has_frames):
            return "healthy runs show this as well"
        if symptom.context and not self._has(symptom.context):
            return "nothing else in the text points to it"
        if symptom.unless and self._has(symptom.unless):
            return "the rest of the text points elsewhere"
        return ""

    def _has(self, pattern: str) -> bool:
        return next(self.occurrences(pattern), None) is not None

    def raised_in(self, position: int) -> str | None:
        """The file of the innermost frame of the traceback that a message ends."""
        begins = self.text.rfind(_TRACEBACK, 0, position)
        for end, file in reversed(self._frames):
            if end <= position:
                return file if end > begins else None
        return None


def _rank(found: tuple[Symptom, re.Match[str]]) -> tuple[bool, int, bool, int, int]:
    symptom, hit = found
    confirmed = bool(symptom.context or symptom.raised_in)
    length = hit.end() - hit.start()
    return not symptom.consequence, hit.end(), confirmed, symptom.weight, length


@cache  # the cache of ``re`` holds fewer than there are symptoms
def _compiled(pattern: str, flags: int) -> re.Pattern[str]:
    """Markdown takes the backticks out of a message, so that none has to be there."""
    loose = _BACKTICK.sub(lambda found: "`?" if found[0][0] == "`" else found[0], pattern)
    return re.compile(loose, flags)


def _plain(text: str) -> str:
    """``text`` as the program wrote it, before terminals, launchers and word processors."""
    if r"File \"" in text:  # a traceback in a line of JSON
        text = text.replace(r"\n", "\n").replace(r"\"", '"')
    written = _CUT_PATH.sub("", COLOURS.sub("", text.translate(_STRAIGHT)))
    return _BOLD_INIT.sub("__init__()", _NOISE.sub(" ", written))


def _shortened(word: str) -> str:
    half = _WORD // 2
    return word if len(word) <= _WORD else f"{word[:half]}…{word[-half:]}"
