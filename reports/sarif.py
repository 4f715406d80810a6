"""``sarif``: SARIF 2.1.0, which GitHub code scanning and many editors read.

The specification is OASIS' "Static Analysis Results Interchange Format". A question that stayed
open is a notification of the tool, and its run did not succeed. A finding that was accepted is a
result with its suppression.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lora_doctor.reports._records import (
    UNDETERMINED,
    Record,
    accepted_records,
    recipe_file,
    records,
    remarks,
    set_up,
)
from lora_doctor.reports._rule_texts import rule_texts
from lora_doctor.reports._text import plain, visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Accepted, Diagnosis

NAME = "sarif"
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_HOME = "https://github.com/lora-doctor/lora-doctor"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def render(
    diagnosis: Diagnosis,
    *,
    color: bool = False,
    width: int = 80,
    verbose: bool = False,
    encoding: str = "utf-8",
) -> str:
    """One run with the findings as its results."""
    found, checked = records(diagnosis), set_up(diagnosis)
    results = [record for record in found if record.rule != UNDETERMINED]
    accepted = accepted_records(diagnosis)
    names = {record.rule: record.name for record in (*results, *(one for one, _ in accepted))}
    rules = sorted(names)
    driver = {
        "name": "lora-doctor",
        "informationUri": _HOME,
        "version": str(diagnosis.environment.get("lora_doctor", "")),
        "rules": [_rule(rule, names[rule]) for rule in rules],
    }
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": _category(checked, recipe_file(diagnosis))},
        "invocations": [
            _invocation(found, remarks(diagnosis), reached=diagnosis.undetermined is None)
        ],
        "properties": {"budgets": plain([asdict(one) for one in diagnosis.budgets])},
        "results": [
            *(_result(record, rules, checked) for record in results),
            *(
                {**_result(record, rules, checked), "suppressions": [_suppression(item)]}
                for record, item in accepted
            ),
        ],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(code: str, name: str) -> dict[str, Any]:
    """GitHub asks for the three texts of each rule, and shows them beside its alerts."""
    summary, documentation = rule_texts(code, name)
    page = f"{_HOME}/blob/main/docs/rules/{code}.md"
    help_ = {"text": f"{summary} See {page}"}
    if documentation:
        help_["markdown"] = documentation
    return {
        "id": code,
        "name": name,
        "shortDescription": {"text": summary},
        "fullDescription": {"text": _what_happens(documentation) or summary},
        "help": help_,
        "helpUri": page,
    }


def _what_happens(documentation: str) -> str:
    """The first paragraph below that heading, in one line."""
    _, _, below = documentation.partition("## What happens\n")
    return " ".join(below.strip().partition("\n\n")[0].split())


def join(texts: Mapping[str, str]) -> str:
    """One log with a run for each set-up."""
    runs = []
    for name, text in texts.items():
        (run,) = json.loads(text)["runs"]
        runs.append({**run, "automationDetails": {"id": _category(visible(name))}})
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": runs}, indent=2) + "\n"


def _category(*names: str) -> str:
    """GitHub takes what stands before the last slash for the category of a run. A second run of the
    same category replaces the first, and is refused in one upload."""
    return "/".join(("lora-doctor", *filter(None, names), ""))


def _suppression(item: Accepted) -> dict[str, str]:
    """``inSource`` is a comment in the user's file, ``external`` a baseline or the project's
    configuration."""
    known = f"known: it is in {item.reason}" if item.by == "baseline" else item.reason
    return {
        "kind": "inSource" if item.where else "external",
        "status": "accepted",
        "justification": visible(known, 1000),
    }


def _invocation(found: list[Record], told: list[str], *, reached: bool) -> dict[str, Any]:
    notifications = [
        {"level": _LEVELS[record.level], "message": {"text": record.message}}
        for record in found
        if record.rule == UNDETERMINED
    ]
    notifications += [{"level": "note", "message": {"text": text}} for text in told]
    return {"executionSuccessful": reached, "toolExecutionNotifications": notifications}


def _result(record: Record, rules: list[str], set_up: str) -> dict[str, Any]:
    # GitHub refuses a whole log for one result without a physical location. Where there is no file
    # the model is the artifact, as the image is in logs of container scanners.
    uri = _uri(record.file) if record.file else quote(set_up, safe="/")
    place: dict[str, Any] = {"artifactLocation": {"uri": uri}}
    if record.file and record.line:
        place["region"] = {"startLine": record.line}
    location = {
        "physicalLocation": place,
        "logicalLocations": [{"fullyQualifiedName": record.where}],
    }
    text = record.message + (f" Fix: {record.fix}" if record.fix else "")
    return {
        "ruleId": record.rule,
        "ruleIndex": rules.index(record.rule),
        "level": _LEVELS[record.level],
        "message": {"text": text},
        "locations": [location],
        "partialFingerprints": {"loraDoctor/v1": record.fingerprint},
    }


def _uri(file: str) -> str:
    from pathlib import PurePosixPath

    path = PurePosixPath(file)
    return path.as_uri() if path.is_absolute() else quote(file)
