"""What the installed PEFT did with the adapter calls of a program: data only, no verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lora_doctor.results.error_report import ErrorReport


@dataclass(frozen=True)
class StepFault:
    """One call of a program that does not do what it is there for."""

    #: Number of the call, from 0.
    step: int
    #: ``refused``: PEFT raises. ``altered``: a combined adapter is not what its parts give.
    #: ``not-loadable``: a combined or swapped adapter, saved, does not fit the config beside it.
    #: ``left-out``: what is merged leaves out adapters that were loaded for it.
    #: ``rescaled``: an adapter that was swapped in, or is saved after that, has another scaling
    #: than loading gives it.
    kind: Literal["refused", "altered", "not-loadable", "left-out", "rescaled"]
    #: The adapters that it is about.
    adapters: tuple[str, ...] = ()
    #: What was measured, or the tensors that do not fit. Of what is left out: ``taken off``,
    #: ``active``, or the path of a module that is saved as a whole.
    detail: str = ""
    #: Entry of an adapter's config without which the fault is gone; empty where none was found.
    cause: str = ""
    #: Adapters that were merged.
    merged: tuple[str, ...] = ()
    #: What PEFT raised.
    error: ErrorReport | None = None


@dataclass(frozen=True)
class AdapterSteps:
    """The adapter calls of a program, made again on the class on the meta device."""

    #: Class of the base model.
    model_class: str
    #: Calls that were made, the one that failed included.
    made: int
    #: What was found.
    faults: tuple[StepFault, ...] = ()
