"""What code asked the installed transformers for, when it was run, and did not get."""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.rule_api import Case, place_of


@dataclass(frozen=True)
class MissingAttribute:
    """``asked``: ``class.attribute``; ``file``, ``line``: the code that asked; ``message``: what
    was raised; ``depth``: of the run."""

    asked: str
    file: str
    line: int
    message: str
    depth: str

    @property
    def in_transformers(self) -> bool:
        """Whether transformers' own code asked, and not code of the model's repository."""
        return self.file.startswith("transformers/")


def missing_attribute(case: Case) -> MissingAttribute | None:
    """What the model raised without adapters in the run of this case; ``None`` where it ran, was
    not run, or raised something else."""
    if not case.reaches("tiny") or not case.has("verification"):
        return None
    seen = case.verification
    error = seen.base_error
    place = place_of(error.where) if error is not None else None
    if error is None or not error.lacks or place is None:
        return None
    return MissingAttribute(error.lacks, *place, str(error), seen.depth)
