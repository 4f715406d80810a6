"""The first thing in a process of the user's: answer the handshake, then call what is to act."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_doctor.guest.carried import Carried, carry_on
from lora_doctor.guest.children import watch_children
from lora_doctor.guest.session import Session


def start(folder: str) -> None:
    """Be a guest of the session in this folder.

    Raises:
        OSError, ValueError: there is no session.
        ImportError, AttributeError: an act is missing.
    """
    session = Session.read(Path(folder))
    _act(session.acts, session)
    watch_children(session)
    answer(session)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: answer(session))


def start_carried(text: str) -> None:
    """Be a guest of the session that the environment holds.

    Raises:
        ValueError, KeyError, TypeError: it holds none.
        ImportError, AttributeError: an act is missing.
    """
    carried = Carried.read(text)
    _act(carried.acts, carried)
    carry_on(carried)


def _act(acts: Sequence[str], session: Any) -> None:
    for act in acts:
        module, _, function = act.partition(":")
        getattr(importlib.import_module(module), function)(session)


def answer(session: Session) -> None:
    """Say that the guest of this process is in place."""
    text = json.dumps(
        {
            "nonce": session.nonce,
            "pid": os.getpid(),
            "python": sys.version.split()[0],
            "executable": sys.executable,
            "arguments": getattr(sys, "orig_argv", sys.argv),
        }
    )
    path = session.answers / str(os.getpid())
    unfinished = path.with_suffix(".new")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
