"""A batch that the model accepts, and the error where none was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lora_doctor.results.note import Note


class BatchError(Exception):
    """No batch was found that the model accepts; `reason` is one line with the last exception.

    `forward_errors` has one line for each choice of modalities that was tried; `raised` is what
    forward raised for the fullest of them: at last, and before the first guess. `__cause__` is the
    exception that the reason ends in, where it ends in one.
    """

    def __init__(
        self,
        reason: str,
        forward_errors: list[str] | None = None,
        raised: tuple[BaseException, ...] = (),
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.forward_errors = forward_errors or [reason]
        self.raised = raised


@dataclass
class Batch:
    """Forward arguments and where their loss comes from.

    `modality`: names of the modalities in it, in the order text, image, audio, video. `left_out`:
    those that forward could take and raised errors for (the note `input-left-out` has the error);
    `forward_errors`: one line for each. `loss`: "labels", "start_positions/end_positions", "its
    own" (forward returns one without labels) or "surrogate" (made from the outputs).
    """

    inputs: dict[str, Any]
    modality: list[str]
    loss: str
    notes: list[Note] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    forward_errors: list[str] = field(default_factory=list)

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in self.inputs.items()}
        return Batch(
            moved, self.modality, self.loss, self.notes, self.left_out, self.forward_errors
        )
