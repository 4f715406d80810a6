"""What PEFT makes of a part of the model that a program gives adapters instead of the whole."""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.results.error_report import ErrorReport


@dataclass(frozen=True)
class AdaptedPart:
    """A part of the full-size model, handed to ``get_peft_model`` on the meta device."""

    #: Where it stands in the model, such as ``model`` or ``language_model.model``.
    path: str
    #: Its class.
    class_name: str
    #: The call of the program, and where it stands.
    code: str
    #: File of the call.
    file: str
    #: Line of the call.
    line: int
    #: What ``get_peft_model`` raised; ``None`` where it went through.
    error: ErrorReport | None = None
