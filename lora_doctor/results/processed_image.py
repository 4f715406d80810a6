"""What the processor in the model's folder makes of one image, against what the model takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lora_doctor.results.error_report import ErrorReport


@dataclass(frozen=True)
class ProcessedImage:
    """One image and a text with its token, through the processor of the folder."""

    #: The class of the processor.
    processor: str
    #: What it raised; ``None`` where it went through.
    error: ErrorReport | None = None
    #: Places for parts of the image in the tokens; 0 where it raised.
    places: int = 0
    #: Parts that the class makes of this image; 0 where that is not known.
    features: int = 0
    #: Values that the folder does not give, with which the processor goes through and makes as many
    #: places as there are features; empty where nothing is wrong, or other values would not help.
    lacks: dict[str, Any] = field(default_factory=dict)
