"""Secrets taken out of what a page quotes: it is mailed around and attached.

A command line, an exception or a config may hold a token. What looks like one is replaced, and what
stands behind an option or a variable whose name says that it is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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
#: Names of options and variables that hold a secret; ``pad_token`` and its kind are none.
_NAMES = (
    r"(?:(?:hub|hf|hugging_?face(?:[_-]hub)?|api|access|auth|use_auth|bearer|git(?:hub|lab)"
    r"|push_to_hub|refresh|session)[_-])?token"
    r"|[a-z0-9_.-]*(?:api[_-]?key|access[_-]?key|secret[_-]?key|secret|password|passwd)"
)
#: ``--hub-token X``, ``--api_key=X``, ``WANDB_API_KEY=X``: the name is kept.
_NAMED = re.compile(
    rf"((?<![\w.-])(?:--)?(?:{_NAMES})(?:=|\s+(?!=)))(?P<value>\"[^\"]+\"|'[^']+'|[^\s\"']+)",
    re.IGNORECASE,
)
#: A name and a password in an address.
_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@:]+:[^\s/@]+@", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """``text`` with :data:`MASK` in the place of each secret."""
    if len(text) < _SHORTEST:
        return text
    text = _TOKENS.sub(MASK, text)
    text = _WEB_TOKEN.sub(MASK, text)
    text = _LONG_WORD.sub(_random, text)
    text = _ADDRESS.sub(rf"\1{MASK}@", text)
    return _NAMED.sub(_masked, text)


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


def data_without_secrets(data: Any) -> Any:
    """The same of JSON data: its strings, and what stands in a list behind an option of that
    name."""
    if isinstance(data, str):
        return without_secrets(data)
    if isinstance(data, Mapping):
        return {key: data_without_secrets(item) for key, item in data.items()}
    if isinstance(data, list):
        return [_item(data, index) for index in range(len(data))]
    return data


def _item(data: list[Any], index: int) -> Any:
    item, before = data[index], data[index - 1] if index else ""
    if isinstance(item, str) and isinstance(before, str) and before.startswith("--"):
        joined = without_secrets(f"{before} {item}")
        if joined == f"{before} {MASK}":
            return MASK
    return data_without_secrets(item)
