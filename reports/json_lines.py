"""``json-lines``: a JSON object for each finding, one on a line; for pipes.

The keys of a line are those of ``findings`` in ``json``, with ``model`` and ``fingerprint``; a
question that stayed open is a line whose ``rule`` is ``undetermined``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_doctor.reports._records import UNDETERMINED
from lora_doctor.reports._text import plain
from lora_doctor.reports._words import ordered, why_undetermined
from lora_doctor.results.fingerprints import fingerprints

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

NAME = "json-lines"


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """Strict JSON in ASCII; nothing where nothing was found."""
    model, findings = str(diagnosis.model), diagnosis.findings
    accepted = {item.fingerprint for item in diagnosis.accepted}
    named = {id(one): name for one, name in zip(findings, fingerprints(findings), strict=True)}
    lines = [
        {"model": model, "fingerprint": named[id(finding)], **finding.to_json()}
        for finding in ordered(findings)
        if named[id(finding)] not in accepted
    ]
    if diagnosis.undetermined is not None:
        reason = why_undetermined(diagnosis)
        lines.append({"model": model, "rule": UNDETERMINED, "message": reason})
    return "".join(json.dumps(plain(line), allow_nan=False) + "\n" for line in lines)
