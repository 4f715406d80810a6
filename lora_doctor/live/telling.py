"""What a live run says: on standard error, in one process of several, in the usual form."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Literal

from lora_doctor.errors import TrainingStopped
from lora_doctor.results.finding import SEVERITIES, Finding, first_fix
from lora_doctor.text import visible, visible_lines

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

#: The lowest severity of a finding that stops the job.
On = Literal["error", "warning", "never"]
#: Fixes that are named in the message of the exception.
_FIXES_NAMED = 2


def rank() -> int:
    """Which process of the training this one is; 0 where there is only one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    number = os.environ.get("RANK", "0")
    return int(number) if number.isdigit() else 0


def say(text: str) -> None:
    """One line, by the first process."""
    if rank() == 0:
        print(f"lora-doctor: {visible(text)}", file=sys.stderr, flush=True)


def report(diagnosis: Diagnosis) -> None:
    """The diagnosis in the usual form, by the first process."""
    if rank() != 0:
        return
    from lora_doctor.results.formats import render

    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    text = render(diagnosis, "full", width=100, encoding=encoding)
    print(visible_lines(text).rstrip("\n"), file=sys.stderr, flush=True)


def stops(findings: tuple[Finding, ...], on: On) -> bool:
    """Whether one of them is at or above the severity that stops the job."""
    if on == "never":
        return False
    line = SEVERITIES.index(on)
    return any(SEVERITIES.index(finding.severity) <= line for finding in findings)


def stopped(findings: tuple[Finding, ...], when: str) -> TrainingStopped:
    """The exception: rule, what, where, what to do."""
    first = findings[0]
    fix = first_fix(first, unsafe=True)
    named = [fix] if fix is not None else list(first.fixes[:_FIXES_NAMED])
    todo = "; ".join(one.title.rstrip(".") for one in named)
    todo = todo or f"lora-doctor explain {first.rule}"
    more = f" ({len(findings) - 1} more on standard error)" if len(findings) > 1 else ""
    return TrainingStopped(
        f"{when}: {first.rule} {first.name}: {first.message} [{first.location}] "
        f"What to do: {todo}{more}",
        findings,
    )
