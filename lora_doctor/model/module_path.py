"""Paths of modules, as patterns: the same for every layer of a stack."""

from __future__ import annotations

import re

#: A part of a path that counts; an expert's may be numbered with a word before it (`expert_3`).
_NUMBERED = r"((?:experts?_)?)\d+"
_NUMBERED_PART = re.compile(rf"(?<![^.]){_NUMBERED}(?![^.])")


def pattern_of(path: str) -> str:
    """The path with every number as ``*``: ``h.3.attn`` is ``h.*.attn``."""
    return _NUMBERED_PART.sub(r"\1*", path)


def is_numbered(part: str) -> bool:
    """Whether a part of a path counts the layers of a stack, or experts."""
    return re.fullmatch(_NUMBERED, part) is not None
