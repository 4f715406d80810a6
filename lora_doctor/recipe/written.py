"""What a program that holds a recipe says besides its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_doctor.static.place import Place

if TYPE_CHECKING:
    from lora_doctor.static.program.started import Start


@dataclass(frozen=True)
class Written:
    """What was read of a training script or notebook beside the recipe."""

    #: Part of a recipe (``adapter``, ``loading``, ...) to where a key of it would be added.
    parts: Mapping[str, Place] = field(default_factory=dict)
    #: What the file does not say, each with its name, its line and how to say it.
    asked: tuple[str, ...] = ()
    #: On what condition the file was read so, such as a question about the GPU.
    assumed: tuple[str, ...] = ()
    #: Loops that load or train, of which only the first round was read, each as a sentence.
    first_rounds: tuple[str, ...] = ()
    #: Releases that it asks for where others are installed, each as a sentence.
    other_releases: tuple[str, ...] = ()
    #: The class of its own around the model, on which it puts the adapters, and where; else empty.
    around: str = ""
    #: Why the model that it names cannot be looked at; empty where it can.
    out_of_reach: str = ""
    #: The content of the file that was read, where that is a program.
    data: bytes | None = field(default=None, repr=False)
    #: The words of the program's command line that were given.
    arguments: tuple[str, ...] = ()
    #: The command in a shell file that starts it with them.
    start: Start | None = None
    #: The files beside it that it imports, with the content that was read.
    beside: Mapping[Path, bytes] = field(default_factory=dict, repr=False)
