"""What the installed trainer makes of the rows that a program says, up to the first loss."""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.results.training_signal import OneLabel


@dataclass(frozen=True)
class FirstBatch:
    """The rows of a program through its collator, its trainer and a tiny model."""

    #: Package and release of the trainer.
    release: str
    #: Rows of the training set.
    rows: int
    #: Batches of them that were collated, eight at most.
    batches: int
    #: What failed: ``rows``, ``collator``, ``trainer``, ``batch`` or ``loss``; empty where nothing
    #: did.
    stage: str = ""
    #: Class of the exception.
    kind: str = ""
    #: Its message.
    message: str = ""
    #: Where a library raised it: a file from the package on, with the line.
    raised_at: str = ""
    #: Line of the program's file that was being followed; 0 where a library was running.
    line: int = 0
    #: What the rows had as columns before the trainer got them.
    columns: tuple[str, ...] = ()
    #: The class that all of the rows have, where they have one and it means something.
    one_label: OneLabel | None = None
