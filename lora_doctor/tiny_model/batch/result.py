"""A batch that the model accepts, and the error where none was found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lora_doctor.results.note import Note
from lora_doctor.tiny_model.model_error import ModelError


class BatchError(Exception):
    """No batch was found that the model accepts; `reason` is one line with the last exception.

    `forward_errors` has one for each choice of modalities that was tried; `raised` is what
    forward raised for the fullest of them: at last, and before the first guess. `__cause__` is the
    exception that the reason ends in, where it ends in one.
    """

    def __init__(
        self,
        reason: str,
        forward_errors: list[ModelError] | None = None,
        raised: tuple[BaseException, ...] = (),
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.forward_errors = forward_errors or [ModelError(told=reason)]
        self.raised = raised


@dataclass
class Batch:
    """Forward arguments and where their loss comes from.

    `modality`: names of the modalities in it, in the order text, image, audio, video. `left_out`:
    those that forward could take and raised errors for (the note `input-left-out` has the error);
    `forward_errors`: one for each; `objections`: all that was raised on the way. `loss`: "labels",
    "start_positions/end_positions", "its own" (forward returns one without labels) or "surrogate"
    (made from the outputs). `needs_no_cache`: its `use_cache=False` is ours, forward raised for the
    cache that it makes by default, and a trainer of this transformers leaves that as it is.
    `added`: inputs that it has because forward raised without them. `one_sample`: what forward
    raised on more than one sample, where it has only one for that.
    """

    inputs: dict[str, Any]
    modality: list[str]
    loss: str
    notes: list[Note] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    forward_errors: list[ModelError] = field(default_factory=list)
    objections: list[ModelError] = field(default_factory=list)
    needs_no_cache: bool = False
    added: tuple[str, ...] = ()
    one_sample: str = ""

    def as_called(self) -> Batch:
        """The batch as a trainer passes it on, with the cache that the model makes by default."""
        if not self.needs_no_cache:
            return self
        inputs = {name: value for name, value in self.inputs.items() if name != "use_cache"}
        return replace(self, inputs=inputs)

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in self.inputs.items()}
        return replace(self, inputs=moved)
