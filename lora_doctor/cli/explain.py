"""``lora-doctor explain``: a rule's documentation, or the rule behind a pasted error message."""

from __future__ import annotations

import difflib
import re

from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.rule import Rule
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.errors import InputError, LimitError
from lora_doctor.text import visible, visible_lines

# No rule has a longer name.
_NAME = 100
_CODE = re.compile(r"[A-Za-z]{2}\d{1,4}")


def explain(text: str, *, color: bool = False) -> str:
    """The documentation of a rule (by code or name), or of the rule that a message points to.

    Raises:
        InputError: no rule has this code, or no rule knows this message.
    """
    text = text.strip()
    rules = find_rules()
    if not text:
        raise InputError("explain: nothing given; give a code such as LD101 or an error message")
    for rule in rules:
        if text.upper() == rule.code or text.lower() == rule.name:
            return _render(rule, color)
    if _CODE.fullmatch(text):
        raise InputError(f"explain: no rule {text.upper()}; see `lora-doctor rules`")
    try:
        matches = find_by_message(text, rules)
    except LimitError as error:
        raise InputError(f"explain: {error}; give the last lines only") from None
    if not matches:
        names = [rule.name for rule in rules]
        near = difflib.get_close_matches(text[:_NAME].lower(), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            "explain: no rule knows this message"
            f"{hint or '; run `lora-doctor check` on the recipe that gave it'}"
        )
    first = matches[0]
    lines = [f"Matched {first.rule.code} in: {visible(first.line)}", ""]
    others = [match.rule for match in matches[1:]]
    body = _render(first.rule, color)
    if others:
        body += "\nAlso possible: " + ", ".join(f"{rule.code} {rule.name}" for rule in others)
    return "\n".join(lines) + body


def _render(rule: type[Rule], color: bool) -> str:
    bold, off = ("\x1b[1m", "\x1b[0m") if color else ("", "")
    documentation = visible_lines(rule.documentation().strip())
    title = visible(f"{rule.code} {rule.name}")
    parts = [f"{bold}{title}{off}", visible(rule.summary), "", documentation]
    if rule.symptoms:
        parts += ["", f"{bold}Error messages{off}"]
        for symptom in rule.symptoms:
            versions = f"   ({symptom.versions})" if symptom.versions else ""
            parts.append(visible(f"  {symptom.pattern}{versions}", None))
    parts += ["", f"Looked for at depth {rule.depth}: lora-doctor check MODEL --select {rule.code}"]
    return "\n".join(parts)
