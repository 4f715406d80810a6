"""One file per output format, found by its place: a file with ``NAME`` and ``render``.

To add a format, copy ``concise.py`` and change it. A format reads the diagnosis and nothing else;
files whose name starts with ``_`` are shared helpers. Importing this package and asking for
:data:`FORMATS` stays cheap: rich and jinja2 are imported inside ``render``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

__all__ = ["FORMATS", "Format", "render"]


class Format(Protocol):
    """What a file of this folder offers (a module is such an object)."""

    NAME: str

    def render(
        self, diagnosis: Diagnosis, *, color: bool, width: int, verbose: bool, encoding: str
    ) -> str:
        """The report as text that ends in a newline, or nothing at all.

        ``width`` in columns; ``color``: ANSI escapes are welcome; ``encoding``: of the place where
        the text will go, characters that it lacks are replaced.
        """


def _discover() -> dict[str, Format]:
    names = [item.name for item in pkgutil.iter_modules(__path__) if not item.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in sorted(names)]
    formats = [cast(Format, module) for module in modules]
    # The format that people read comes first, so that it leads in `--help`.
    formats.sort(key=lambda item: (item.NAME != "full", item.NAME))
    return {item.NAME: item for item in formats}


#: Every format by its name, ``full`` first.
FORMATS: dict[str, Format] = _discover()


def render(
    diagnosis: Diagnosis,
    format: str = "full",
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """The diagnosis in one format.

    ``color`` is withdrawn when the environment sets ``NO_COLOR``. The result can be encoded in
    ``encoding`` without error.

    Raises:
        ValueError: there is no such format.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: is one of {', '.join(FORMATS)}")
    return FORMATS[format].render(
        diagnosis,
        color=color and not os.environ.get("NO_COLOR"),
        width=width,
        verbose=verbose,
        encoding=encoding,
    )
