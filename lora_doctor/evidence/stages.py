"""The stages in which the rows of a program are tried, and what an exception in one says."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.evidence.plain_values import NotFollowedError
from lora_doctor.evidence.refused_arguments import NOT_THEIRS, text_of
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.text import short_file

#: Settings of PEFT or torch that are no matter of the rows.
_NOT_OF_ROWS = re.compile(r"does not require grad|CUDA|bitsandbytes|flash[_-]?attn|kernels?\b")
#: What a message quotes of a row beyond what shows which it is.
_QUOTE = re.compile(r"""(?<!\w)(['"])(.*?)\1""")
#: Packages that say nothing about rows.
_OTHERS = ("peft/", "bitsandbytes/", "accelerate/")


class ProgramError(Exception):
    """What was raised at a stage, of the program's doing."""

    def __init__(self, stage: str, error: Exception) -> None:
        super().__init__(stage)
        self.stage = stage
        self.error = error


class Stage:
    """What is raised inside is of this stage, unless it says nothing about the program."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception):
            return
        for one in _chain(error):
            if isinstance(one, (NotFollowedError, EvidenceError)):
                raise one from None
            if is_out_of_memory(one) or isinstance(one, (ImportError, ProgramError, OSError)):
                return
        said = f"{type(error).__name__}: {error}"
        others = raised_at(error).startswith(_OTHERS)
        if others or NOT_THEIRS.search(said) or _NOT_OF_ROWS.search(said):
            raise EvidenceError(said) from error
        raise ProgramError(self.name, error) from error


def shown(error: Exception) -> str:
    """What it says, without the most of what it quotes of a row: reports go to others."""
    said = " ".join(text_of(error).split())
    return _QUOTE.sub(lambda one: f"{one[1]}{_beginning(one[2])}{one[1]}", said)[:400]


def _beginning(quoted: str) -> str:
    return quoted if len(quoted) <= 60 else f"{quoted[:50]}..."


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def raised_at(error: BaseException) -> str:
    """The last frame of a library in a traceback: a file from the package on, with the line."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = short_file(frame.filename)
        if file != frame.filename and "/" in file and not file.startswith("lora_doctor/"):
            return f"{file}:{frame.lineno}"
    return ""
