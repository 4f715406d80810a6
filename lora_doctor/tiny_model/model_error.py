"""What a model's code, or a library below it, raised while a tiny model was built or run."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from lora_doctor.text import single_line

#: A longer message is cut in its middle: some print the whole module first, and what they say
#: stands at the end.
_LONG, _HEAD, _TAIL = 420, 160, 240


@dataclass(frozen=True)
class ModelError:
    """An exception as data. ``kind``: the name of its class; ``message``: its text on one line;
    ``line``: the line of the model's code that raised it, where the message names nothing
    ("'NoneType' object is not subscriptable"); ``told``: the sentence for people.

    Readers of errors search ``kind``, ``message`` and ``line``, and never ``told``. An objection of
    our own ("the outputs are not finite") has that alone.
    """

    kind: str = ""
    message: str = ""
    line: str = ""
    told: str = ""

    @classmethod
    def of(cls, error: BaseException, told: str = "{}") -> ModelError:
        """``told``: the sentence, with ``{}`` where the exception stands in it."""
        message = single_line(str(error))
        if len(message) > _LONG:
            message = f"{message[:_HEAD]} ... {message[-_TAIL:]}"
        line = _raising_line(error) if "NoneType" in message else ""
        kind = type(error).__name__
        summary = f"{kind}: {message}" + (f" at `{line}`" if line else "")
        return cls(kind, message, line, told.replace("{}", summary, 1))

    @property
    def words(self) -> str:
        """All that the model's code says: the message, and the line that raised it."""
        return f"{self.message} {self.line}".rstrip()

    def __str__(self) -> str:
        return self.told


def _raising_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if "modeling" in frame.filename and frame.line]
    return lines[-1][:80] if lines else ""
