"""Shared by the rules about the adapter calls of a script."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    AdapterStep,
    Case,
    Location,
    Measurement,
    Proof,
    StepFault,
    adapter_steps,
)

PROOF = Proof("executed", "the calls were made by the installed PEFT, on the class without weights")


def faults(case: Case, kind: str) -> Iterator[tuple[StepFault, AdapterStep]]:
    """What the calls of the script came to, each with the call."""
    if not case.has("program"):
        return
    steps = adapter_steps(case.program)
    for fault in case.adapter_steps.faults if len(steps) > 1 else ():
        if fault.kind == kind:
            yield fault, steps[fault.step]


def at(step: AdapterStep) -> Location:
    return Location("file", step.place.file, step.place.line)


def call(step: AdapterStep) -> Measurement:
    return Measurement("the call", step.code, str(step.place))
