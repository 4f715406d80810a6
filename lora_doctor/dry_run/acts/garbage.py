"""Python's search for garbage, in a process of the command: seldom while it imports, and not once
more at its end.

Nearly all that torch, transformers and PEFT make when they are imported stays. Python looks through
it again and again meanwhile, and several times when it ends, where nobody will use what that frees:
together a third of the processor time of the imports.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io

from lora_doctor.dry_run.acts.acting import Acting

#: New objects between two looks, where Python has 700.
_SELDOM = 50_000
_BUFFERED = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def prepare(acting: Acting) -> None:
    """Before all other acts: what is registered first is called last at the end."""
    usual = gc.get_threshold()
    gc.set_threshold(_SELDOM, *usual[1:])

    def as_usual() -> None:
        if gc.get_threshold()[0] == _SELDOM:  # else the command has set it
            gc.set_threshold(*usual)

    # What a forward leaves can be small for Python, and large in memory.
    acting.before_first_forward = as_usual
    atexit.register(_leave)


def _leave() -> None:
    # Files that are part of a cycle would have been closed by the search.
    for found in gc.get_objects():
        if type(found) in _BUFFERED:
            with contextlib.suppress(OSError, ValueError):  # it is closed, or takes nothing more
                found.flush()
    gc.disable()
    gc.freeze()
