"""What a forward raised, as the readers of error messages get it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Raised:
    """`text`: the message on one line, arguments in it by the names that most models have."""

    exception: BaseException
    text: str

    @classmethod
    def by(cls, exception: BaseException, own_names: Mapping[str, str] | None = None) -> Raised:
        """`own_names`: common names of arguments to those of this forward."""
        text = " ".join(str(exception).split())
        for common, own in (own_names or {}).items():
            text = text.replace(own, common)
        return cls(exception, text)

    @property
    def line(self) -> str:
        """The line of code that raised."""
        return traceback.extract_tb(self.exception.__traceback__)[-1].line or ""

    @property
    def start(self) -> str:
        """As much of the text as a note has room for."""
        return self.text[:120]

    @property
    def summary(self) -> str:
        return f"{type(self.exception).__name__}: {self.start}"
