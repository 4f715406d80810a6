"""``lora-doctor explain``: a rule's documentation, or the rule behind a pasted error message."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.cli.streams import decoded
from lora_doctor.engine.as_written import as_written
from lora_doctor.engine.languages import in_english
from lora_doctor.engine.other_causes import OtherCause, find_other_cause
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.rule import Example, Rule
from lora_doctor.engine.symptoms import (
    Match,
    NearMatch,
    find_by_description,
    find_by_message,
    find_near,
    is_told,
)
from lora_doctor.engine.told_in_words import Told, told_in_words
from lora_doctor.engine.vocabulary import names_another_program
from lora_doctor.errors import InputError, LimitError
from lora_doctor.limits import LOG_CHARACTERS
from lora_doctor.results.secrets import hidden
from lora_doctor.static.installed.raised_messages import RaisedMessage, raised_message
from lora_doctor.text import visible, visible_lines

# No rule has a longer name.
_NAME = 100
_CODE = re.compile(r"[A-Za-z]{2}\d{1,4}")
_MENTION = re.compile(r"\b[A-Z]{2}\d{3}\b")
#: No path is longer; of a file so many bytes at its end are read, four for a character at most.
_PATH = 4_096
_TAIL = 4 * LOG_CHARACTERS
#: So many rules that know words of the text are named; the more there are, the less each says.
_NEAR = 3
#: The suffixes of what is a log's name rather than a message.
_LOGS = (".log", ".txt", ".out", ".err")

#: A line that Python ends a traceback with: what of a long text was taken for the message.
_ERROR = re.compile(r"\s*[\w.]*(?:Error|Exception|Exit|Interrupt)\b: ?")
#: A text that is such a line: these words are a program's, and nobody tells of a failure in them.
_IS_MESSAGE = re.compile(r"\s*[\w.]+(?:Error|Exception): \S[^\n]*\s*\Z")


@dataclass(frozen=True)
class Explanation:
    """What the rules know about a text."""

    #: The rules that explain it, the likeliest first.
    matches: tuple[Match, ...]
    #: Rules that know words of it and are not behind it, each with the reason.
    near: tuple[NearMatch, ...]
    #: What it is about where no rule explains it, if that is known and no LoRA set-up.
    other_cause: OtherCause | None = None
    #: Where an installed package says the message, if no rule knows it by its words.
    raised: RaisedMessage | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; ``line`` is what matched in the text, ``described`` whether that is a
        description in words and no message, ``like`` the sentence of the rule that it is like."""
        return {
            "matches": [
                {
                    **_identity(match.rule),
                    "line": hidden(visible(match.line)),
                    "described": match.described,
                    "like": match.like or None,
                }
                for match in self.matches
            ],
            "near": [
                {**_identity(near.rule), "line": hidden(visible(near.line)), "lacks": near.lacks}
                for near in self.near
            ],
            "other_cause": self.other_cause
            and {"about": self.other_cause.about, "command": self.other_cause.command or None},
            "raised": self.raised
            and {
                "package": self.raised.package,
                "version": self.raised.version,
                "place": self.raised.place,
                "function": self.raised.function,
                "condition": self.raised.condition or None,
            },
        }


def explain(text: str, *, color: bool = False) -> str:
    """The documentation of a rule (by code or name), or of the rule that a message points to.

    Raises:
        InputError: no rule has this code, or no rule knows this message.
    """
    rule = _named(text.strip())
    if rule is not None:
        return _render(rule, color)
    found = explanation(text)
    if not found.matches:
        raise InputError(_unknown(text.strip(), found))
    first, *others = found.matches
    matched = f"Matched {first.rule.code} in: {hidden(visible(_matched_line(text, first)))}"
    if first.described:
        matched = f"No error message recognised; by its description it may be {first.rule.code}"
    if first.like:
        matched += f": {hidden(visible(first.line))}, as in {visible(first.like)!r}"
    lines = [matched, *_here(text, first.rule), *_said_by(found.raised), ""]
    body = _render(first.rule, color)
    if others:
        names = (f"{match.rule.code} {match.rule.name}" for match in others)
        body += "\nAlso possible: " + ", ".join(names)
    return "\n".join(lines) + body


def _matched_line(text: str, match: Match) -> str:
    """The words that the rule knows; the whole line of a message that is known by its place."""
    if not match.knows_class_alone:
        return match.line
    lines = [line.strip() for line in text.splitlines() if match.line in line]
    return visible(lines[-1], 200) if lines else match.line


def _here(text: str, rule: type[Rule]) -> list[str]:
    """The pair of installed packages that gives a pasted message here, and what pip is told."""
    if not rule.about_environment:
        return []
    from lora_doctor.static.installed.import_chain import missing_imports
    from lora_doctor.static.installed.pair_repair import pip_lines

    return [
        visible(
            f"In this environment: {one.importer} ({one.file}:{one.line}) imports it from "
            f"{one.provider}; {' or '.join(pip_lines(one))}",
            None,
        )
        for one in missing_imports()
        if one.message in text
    ]


def _said_by(raised: RaisedMessage | None) -> list[str]:
    """The place in an installed package that says the message, and on what condition."""
    if raised is None:
        return []
    verb = "warns so" if raised.warns else "raises it"
    others = f" and {raised.others} more places" if raised.others else ""
    where = f"{raised.place} ({raised.function}){others}" if raised.function else raised.place
    condition = f", where `{raised.condition}`" if raised.condition else ""
    return [
        visible(
            f"The installed {raised.package} {raised.version} {verb} in {where}{condition}", None
        )
    ]


def explain_as_json(text: str) -> tuple[str, bool]:
    """The rules for a code or a message as JSON, and whether there is one.

    Raises:
        InputError: nothing was given, no rule has this code, or the text is too much to search.
    """
    rule = _named(text.strip())
    if rule is not None:
        found = Explanation((Match(rule, text.strip(), 0),), ())
    else:
        found = explanation(text)
    return json.dumps(found.to_dict(), indent=2), bool(found.matches)


def explanation(text: str) -> Explanation:
    """Which rules know a pasted text.

    Raises:
        InputError: the text is too much to search.
    """
    rules = find_rules()
    text = as_written(text[-LOG_CHARACTERS:])
    try:
        matches: Sequence[Match] = find_by_message(text, rules) or _mentioned(text)
        other = None if matches else find_other_cause(text)
        raised = None if matches or other else raised_message(text)
        if raised is not None:
            matches = find_by_message(raised.as_traceback(text), rules)
        told: Sequence[Told] = ()
        if not matches and other is None and raised is None:
            words = in_english(text) if is_told(text) and not _IS_MESSAGE.match(text) else ""
            elsewhere = names_another_program(words)
            matches = () if elsewhere else find_by_description(words, rules)
            told = told_in_words(words, rules) if not matches else ()
            matches = matches or [_named_by_words(one) for one in told if one.is_named]
        known = {match.rule for match in matches}
        near = [near for near in find_near(text, rules) if near.rule not in known]
        near.sort(key=lambda one: one.knows_class_alone)
        near += [_near_by_words(one) for one in told if not one.is_named]
    except LimitError as error:
        raise InputError(f"explain: {error}; give the last lines only") from None
    return Explanation(tuple(matches), tuple(near[:_NEAR]), other, raised)


def _named_by_words(told: Told) -> Match:
    line = ", ".join(repr(word) for word in told.words)
    return Match(told.rule, line, 0, described=True, like=told.sentence)


def _near_by_words(told: Told) -> NearMatch:
    return NearMatch(
        told.rule, ", ".join(told.words), "these words alone are too little to name it"
    )


def pasted(what: str) -> str:
    """What the argument of the command means: the text itself, or the end of a log that is a file.

    Raises:
        InputError: the file cannot be read.
    """
    if len(what) > _PATH or "\n" in what or _rule(what.strip()) is not None:
        return what
    try:
        path = Path(what)
        is_file = path.is_file()
    except (OSError, ValueError):  # too long a name, a null byte
        return what
    if not is_file:
        if path.suffix in _LOGS and len(what.split()) == 1:
            raise InputError(f"explain: there is no file {what!r}")
        return what
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(max(0, path.stat().st_size - _TAIL) // 2 * 2)
            return decoded(file.read(_TAIL), start)
    except OSError as error:
        raise InputError(f"explain: {what}: cannot be read: {error.strerror}") from error


def _named(text: str) -> type[Rule] | None:
    """The rule whose code or name the text is."""
    if not text:
        raise InputError(
            "explain: nothing given; give a rule code such as LD101, or an error message"
        )
    rule = _rule(text)
    if rule is None and _CODE.fullmatch(text):
        raise InputError(f"explain: there is no rule {text.upper()}; see `lora-doctor rules`")
    return rule


def _rule(text: str) -> type[Rule] | None:
    """The rule of which the text is the code, its digits or the name, or both."""
    if len(text) > 2 * _NAME:
        return None
    said = text.upper().rstrip(":")
    for rule in find_rules():
        code, name = rule.code, rule.name.upper()
        number = code.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        if said in (code, name, number, f"{code} {name}", code.replace(number, f" {number}")):
            return rule
    return None


def _mentioned(text: str) -> tuple[Match, ...]:
    """The first rule that a line of a report names, as in ``error LD201 no-target-matches``."""
    rules = {rule.code: rule for rule in find_rules()}
    end = text[-LOG_CHARACTERS:]
    for code in _MENTION.finditer(end):
        rule = rules.get(code[0])
        if rule and (len(text) <= 2 * _NAME or end[code.end() :].lstrip().startswith(rule.name)):
            return (Match(rule, code[0], code.end()),)
    return ()


def _unknown(text: str, found: Explanation) -> str:
    nearest = _nearest(found.near)
    if found.raised:
        return f"explain: no rule knows this message. {_said_by(found.raised)[0]}" + (
            f". The nearest rule: {nearest}" if nearest else ""
        )
    if found.other_cause:
        command = found.other_cause.command
        return (
            f"explain: no rule knows this message; it is about {found.other_cause.about}"
            + (f". See `{command}`" if command else "")
            + (f". The nearest rule: {nearest}" if nearest else "")
        )
    if found.near:
        nearest = nearest or f"{' or '.join(_codes(found.near))}; {found.near[0].lacks}"
        return f"explain: no rule knows this message. The nearest: {nearest}"
    names = [rule.name for rule in find_rules()]
    close = difflib.get_close_matches(text[:_NAME].lower(), names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    lines = text[-LOG_CHARACTERS:].splitlines()
    read = [visible(line.strip(), 200) for line in lines if _ERROR.match(line)]
    told = f" ({'; '.join(repr(line) for line in read[-2:])})" if read else ""
    return f"explain: no rule knows this message{told}" + (
        hint or "; run `lora-doctor check` on the recipe that caused it"
    )


def _nearest(near: tuple[NearMatch, ...]) -> str:
    """The rules that know more of a text than the class of its error, with what it lacks."""
    return "; ".join(
        f"{one.rule.code} {one.rule.name} knows {visible(one.line)!r}, but {one.lacks}"
        for one in near
        if not one.knows_class_alone
    )


def _codes(near: tuple[NearMatch, ...]) -> list[str]:
    return [one.rule.code for one in near]


def _identity(rule: type[Rule]) -> dict[str, str]:
    return {"code": rule.code, "name": rule.name, "summary": rule.summary}


def _render(rule: type[Rule], color: bool) -> str:
    bold, off = ("\x1b[1m", "\x1b[0m") if color else ("", "")
    documentation = visible_lines(rule.documentation().strip())
    title = visible(f"{rule.code} {rule.name}")
    parts = [f"{bold}{title}{off}", visible(rule.summary), "", documentation]
    if rule.symptoms:
        parts += ["", f"{bold}Error messages{off} (regular expressions)"]
        messages = {symptom.pattern: symptom.versions for symptom in reversed(rule.symptoms)}
        for pattern, versions in reversed(messages.items()):
            where = f"   ({versions})" if versions else ""
            parts.append(visible(f"  {pattern}{where}", None))
    parts += ["", f"Checked by: {_command(rule)}"]
    return "\n".join(parts)


def _command(rule: type[Rule]) -> str:
    """The command that asks the rule, with the options without which it is not asked: its broken
    examples have them."""
    if rule.about_environment:
        return "lora-doctor env --check"
    broken = [example for example in rule.examples if example.kind == "broken"]

    def all_have(needed: Callable[[Example], object]) -> bool:
        return bool(broken) and all(needed(example) for example in broken)

    if all_have(lambda example: example.script):
        return "lora-doctor dry-run -- COMMAND"
    options = "" if rule.depth == "tiny" else f" --depth {rule.depth}"
    if all_have(lambda example: example.data):
        options += " --data FILE"
    if all_have(lambda example: "memory_budget" in example.recipe):
        options += " --memory --memory-budget 24GB"
    if all_have(lambda example: "gpu" in example.recipe):
        options += " --gpu NAME"
    return f"lora-doctor check MODEL{options} --select {rule.code}"
