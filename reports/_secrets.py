"""Secrets taken out of what a page quotes: it is mailed around and attached.

A command line, an exception or a config may hold a token. What looks like one is replaced, and what
stands behind an option or a variable whose name says that it is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "[hidden]"
#: Tokens by the beginning that their makers give them: Hugging Face, OpenAI and others with
#: ``sk-``, GitHub, GitLab, AWS, Slack, Google.
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{30,})"
)
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
    if not any(sign in text for sign in ("_", "-", "=", "://", "AKIA", "AIza")):
        return text
    text = _TOKENS.sub(MASK, text)
    text = _ADDRESS.sub(rf"\1{MASK}@", text)
    return _NAMED.sub(_masked, text)


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
