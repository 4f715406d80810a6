"""The tables of words in this folder, which are TOML files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def table(name: str) -> dict[str, Any]:
    """What a file of this folder says, in the order in which it says it."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    found: dict[str, Any] = tomllib.loads(Path(__file__).with_name(name).read_text("utf-8"))
    return found
