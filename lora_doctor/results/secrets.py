"""Secrets taken out of what is shown and stored: results are mailed, attached and logged by CI.

A command line, an exception, a framework's file or a config may hold a token. What looks like one
is replaced, and so is the value of an option, an entry or a variable whose name says that it is
one; what such a variable of this process's environment holds is replaced wherever it stands. Every
format is handed a diagnosis that has been through :func:`hidden_in`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

T = TypeVar("T")

MASK = "[hidden]"
#: Characters below which a text holds no secret with its name.
_SHORTEST = 7
#: Tokens by the beginning that their makers give them: Hugging Face, OpenAI and others with
#: ``sk-``, GitHub, GitLab, AWS, Slack, Google.
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{30,})"
)
#: A JSON web token, by the two braces that it begins with.
_WEB_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
#: Whatever is as long as a token: a second look tells names of models and classes from it.
_LONG_WORD = re.compile(r"(?<![\w/+.-])[A-Za-z0-9_+-]{32,}={0,2}(?![\w/.-])")
#: A word of a language in it, which few tokens have by chance; and marks between words.
_SYLLABLES = re.compile(r"[a-z]{6,}|[A-Z]{7,}|\d{7,}")
_MARKS, _MOST_MARKS = re.compile(r"[-_+]"), 3
#: Characters of each kind that a token has at least: capital letters, small ones, digits.
_OF_EACH = (4, 4, 3)
#: Names of options, entries and variables that hold a secret; ``pad_token`` and its kind do not.
#: LLaMA-Factory has ``hf_hub_token``, ``ms_hub_token`` and ``om_hub_token``.
_CERTAIN = (
    r"(?:(?:[a-z]+[_-])?hub|hf|hugging_?face|api|access|auth|use_auth|bearer|git(?:hub|lab)"
    r"|wandb|push_to_hub|refresh|session)[_-]token"
    r"|[a-z0-9_.-]*(?:api[_-]?key|access[_-]?key|secret[_-]?key|secret|password|passwd)"
    # Capital letters: a variable of the environment, or a constant for a special token.
    r"|(?-i:(?!(?:\w*_)?(?:PAD|EOS|BOS|UNK|SEP|CLS|MASK|END|START|IMAGE|VIDEO|AUDIO)_)"
    r"[A-Z][A-Z0-9_]*_TOKEN)"
)
_NAMES = rf"token|{_CERTAIN}"
#: What each of the names has in it; most strings of a result have none, and are soon done with.
_PART_OF_A_NAME = re.compile(r"token|key|secret|passw", re.IGNORECASE)
#: Values that say that there is no secret here, or where it is fetched: ``None``, ``True``,
#: ``$HF_TOKEN``, ``{{ token }}``, ``os.environ["HF_TOKEN"]``, ``getpass()``.
_NO_SECRET = (
    r"(?!(?:None|True|False|null|true|false)\b|f?[\"']?(?:\$[A-Za-z_{]|\{)"
    r"|[A-Za-z_][A-Za-z_.]*(?:\[[\"']|\([\"')]))"
)
#: ``--hub-token X``, ``--api_key=X``, ``WANDB_API_KEY=X``: the name is kept.
_NAMED = re.compile(
    rf"((?<![\w.-])(?:--)?(?:{_NAMES})(?:=|\s+(?!=))){_NO_SECRET}"
    r"(?:\"[^\"]+\"|'[^']+'|[^\s\"']+)",
    re.IGNORECASE,
)
#: A line of YAML or JSON, or of a diff of one: ``+  hub_token: X``, ``"api_key": "X",``. Prose that
#: goes on behind the colon is none.
_ENTRY = re.compile(
    rf"^([-+ \t]*[\"']?(?:{_CERTAIN})[\"']?[ \t]*:[ \t]*){_NO_SECRET}"
    r"(?:\"[^\"\n]+\"|'[^'\n]+'|[^\s\"',#]+)(?=,?[ \t]*(?:#.*)?$)",
    re.IGNORECASE | re.MULTILINE,
)
_NAME = re.compile(rf"(?:--)?(?:{_NAMES})", re.IGNORECASE)
#: What an entry of such a name may hold: no special token, ``<s>``.
_SECRET = re.compile(rf"{_NO_SECRET}(?!<).+", re.DOTALL)
#: Characters that a variable of the environment has at least, so that its value is looked for
#: everywhere: a short one may be a word.
_LEAST_OF_VARIABLE = 12
#: A name and a password in an address.
_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@:]+:[^\s/@]+@", re.IGNORECASE)


def hidden(text: str) -> str:
    """``text`` with :data:`MASK` in the place of each secret. Doing it twice changes nothing."""
    return _text(text, _of_environment())


def _of_environment() -> tuple[str, ...]:
    """What the variables hold whose names say that it is a secret, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= _LEAST_OF_VARIABLE
        and _PART_OF_A_NAME.search(name)
        and _NAME.fullmatch(name)
        and not value.startswith((MASK, os.sep))
        and not any(map(str.isspace, value))
    }
    return tuple(sorted(found, key=len, reverse=True))


def _text(text: str, held: tuple[str, ...]) -> str:
    if len(text) < _SHORTEST:
        return text
    for value in held:
        text = text.replace(value, MASK)
    text = _TOKENS.sub(MASK, text)
    text = _WEB_TOKEN.sub(MASK, text)
    text = _LONG_WORD.sub(_random, text)
    if "://" in text:
        text = _ADDRESS.sub(rf"\1{MASK}@", text)
    if _PART_OF_A_NAME.search(text) is None:
        return text
    text = _ENTRY.sub(rf"\1{MASK}", text)
    return _NAMED.sub(_masked, text)


def hidden_in(value: T) -> T:
    """The same of data: of the strings in dataclasses, mappings, lists and tuples, of what an entry
    holds whose name says that it is a secret, and of what follows an option of such a name in a
    list. Where nothing is hidden it is ``value`` itself; whatever else is in it stays as it is."""
    return cast(T, _hidden(value, _of_environment()))


def _hidden(value: Any, held: tuple[str, ...]) -> Any:
    """``held``: what the environment holds."""
    if type(value) is str:
        text = _text(value, held)
        return value if text == value else text
    if is_dataclass(value) and not isinstance(value, type):
        return _of_dataclass(value, held)
    if isinstance(value, Mapping):
        items = {key: _entry(key, item, held) for key, item in value.items()}
        return items if _changed(value.values(), items.values()) else value
    if type(value) in (list, tuple):
        parts = [_item(value, index, held) for index in range(len(value))]
        return type(value)(parts) if _changed(value, parts) else value
    return value


def _of_dataclass(value: Any, held: tuple[str, ...]) -> Any:
    before = {one.name: getattr(value, one.name) for one in fields(value) if one.init}
    changes = {name: _hidden(item, held) for name, item in before.items()}
    changes = {name: item for name, item in changes.items() if item is not before[name]}
    return replace(value, **changes) if changes else value


def _changed(before: Iterable[Any], now: Iterable[Any]) -> bool:
    return any(one is not other for one, other in zip(before, now, strict=True))


def _entry(name: Any, item: Any, held: tuple[str, ...]) -> Any:
    """An entry of a mapping: a file's, or a variable of the environment."""
    if isinstance(name, str) and type(item) is str and _NAME.fullmatch(name):
        return MASK if _SECRET.fullmatch(item) and item != MASK else item
    return _hidden(item, held)


def _item(parts: Any, index: int, held: tuple[str, ...]) -> Any:
    """An item of a list, which may be a command line."""
    item, before = parts[index], parts[index - 1] if index else ""
    if type(item) is str and isinstance(before, str) and before.startswith("--"):
        return MASK if _NAME.fullmatch(before) and item != MASK else _hidden(item, held)
    return _hidden(item, held)


def _random(found: re.Match[str]) -> str:
    """A word without a syllable, of letters in both cases and digits, is a token. Numbers in
    hexadecimal stay: they are revisions and checksums."""
    word = found[0]
    counts = (sum(map(kind, word)) for kind in (str.isupper, str.islower, str.isdigit))
    mixed = all(count >= least for count, least in zip(counts, _OF_EACH, strict=True))
    named = _SYLLABLES.search(word) or len(_MARKS.findall(word)) > _MOST_MARKS
    return MASK if mixed and not named else word


def _masked(found: re.Match[str]) -> str:
    """Behind a space only where the name is an option: prose may speak of a token."""
    name = found[1]
    if name.endswith("=") or name.startswith("--"):
        return f"{name}{MASK}"
    return found[0]
