"""``pip install`` in a command or in a notebook's first cell: left out, so that a dry run changes
nothing in the environment that it is run in."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.start import answer

_CHANGES = ("install", "uninstall")
#: Options of Python whose value may be the next word.
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


def leave_out(acting: Acting) -> None:
    """End this process where it is pip's and would change what is installed."""
    words = list(getattr(sys, "orig_argv", ()))
    if not changes_packages(words):
        return
    acting.note("redirected", f"pip was left out: {' '.join(words[1:])[:200]}")
    answer(acting.session)
    os._exit(0)


def changes_packages(words: Sequence[str]) -> bool:
    """Whether these words of a Python command are pip's, and install or remove something."""
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word == "-m":
            is_pip = bool(rest) and rest.pop(0) == "pip"
            return is_pip and _asks(rest)
        if word in _WITH_VALUE:
            del rest[:1]
        elif not word.startswith("-"):
            name = os.path.basename(word).removesuffix(".exe")
            return name.rstrip("0123456789.") == "pip" and _asks(rest)
    return False


def _asks(rest: Sequence[str]) -> bool:
    return next((word for word in rest if not word.startswith("-")), "") in _CHANGES
