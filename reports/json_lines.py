"""``json-lines``: a JSON object for each finding, one on a line; for pipes.

The keys of a line are those of ``findings`` in ``json``, with ``model`` and ``fingerprint``; a
question that stayed open is a line whose ``rule`` is ``undetermined``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_doctor.reports._records import UNDETERMINED, not_accepted
from lora_doctor.reports._text import plain
from lora_doctor.reports._words import why_undetermined
from lora_doctor.results.formats import one_after_another

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

NAME = "json-lines"
join = one_after_another


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """Strict JSON in ASCII; nothing where nothing was found."""
    model = str(diagnosis.model)
    lines = [
        {"model": model, "fingerprint": name, **finding.to_json()}
        for name, finding in not_accepted(diagnosis)
    ]
    if diagnosis.undetermined is not None:
        reason = why_undetermined(diagnosis)
        lines.append({"model": model, "rule": UNDETERMINED, "message": reason})
    return "".join(json.dumps(plain(line), allow_nan=False) + "\n" for line in lines)
