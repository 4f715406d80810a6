"""One file per output format, found by its place: a file with ``NAME`` and ``render``.

To add a format, copy ``concise.py`` and change it. A format reads the diagnosis and nothing else;
files whose name starts with ``_`` are shared helpers. rich and jinja2 are imported inside
``render``, so that listing the formats stays cheap.
"""

from __future__ import annotations

from lora_doctor.results.formats import Format, find_formats, render

if __name__ == "reports":  # a checkout is the working directory: it would be a second copy of all
    raise ImportError("the package of the report formats is lora_doctor.reports")

__all__ = ["Format", "find_formats", "render"]
