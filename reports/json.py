"""``json``: the whole diagnosis for machines.

Valid against ``lora_doctor/schema/diagnosis-2.json``. Strict JSON in ASCII, so that no terminal and
no pipe can damage it. What JSON cannot write is described in the schema: numbers that are not
finite are the texts ``NaN``, ``Infinity`` and ``-Infinity``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_doctor.reports._text import plain

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

NAME = "json"


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """The diagnosis as indented JSON; the keys keep the order of ``Diagnosis.to_json``."""
    return json.dumps(data(diagnosis), indent=2, allow_nan=False) + "\n"


def data(diagnosis: Diagnosis) -> dict[str, Any]:
    """What ``render`` writes, as Python data."""
    result: dict[str, Any] = plain(diagnosis.to_json())
    return result
