"""One row of `docs/stacks.md`: a failure of one of the five reports, tried on the installed stack.

:func:`prove` runs the whole story (found, fixed, trained; or silent where it does not occur) and
writes what came out to the file that ``LORA_DOCTOR_STACKS`` names, one JSON object a line. The
page is made of these lines and of nothing else: ``python -m tools.stacks_page FILES``. Without that
variable what came out is compared with the page, so that the page cannot go stale unseen.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.results.finding import first_fix
from lora_doctor.sandbox.worker import Worker
from tools import stacks_page

FOUND_AND_FIXED = "found, fixed"
FOUND_BY_HAND = "found, fixed by hand"
DOES_NOT_OCCUR = "does not occur"
Versions = Mapping[str, str]


def holds(versions: Versions) -> bool:
    """Whether the installed packages are these: ``{"transformers": ">=4.50"}``."""
    from packaging.specifiers import SpecifierSet

    return all(
        importlib.metadata.version(package) in SpecifierSet(wanted, prereleases=True)
        for package, wanted in versions.items()
    )


def record(report: str, failure: str, rule: str, outcome: str) -> None:
    """Keep what came out for the page; `failure` is the row, the installed stack the column."""
    stack = {name: importlib.metadata.version(name) for name in ("transformers", "peft")}
    line = {"report": report, "failure": failure, "rule": rule, "stack": stack, "outcome": outcome}
    path = os.environ.get("LORA_DOCTOR_STACKS")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return
    written = stacks_page.cell(line)
    if not stacks_page.tells_on_demand():  # written before a cell said so
        outcome = outcome.replace(stacks_page.ON_DEMAND, "")
    assert written in (None, outcome), (
        f"docs/stacks.md says {written!r}, it is {outcome!r}: run nox -s scenarios stacks"
    )


def not_here(report: str, failure: str, rule: str, reason: str) -> None:
    """The failure cannot be tried on this stack; the reason stands in the table. Skips the test."""
    record(report, failure, rule, reason)
    pytest.skip(reason)


def prove(  # noqa: PLR0913 - a scenario is told in one call, by names
    report: str,
    failure: str,
    rule: str,
    model: Any,
    recipe: Any,
    *,
    worker: Worker,
    occurs: bool,
    plainly: Callable[[], Any] | None = None,
    by_hand: tuple[Any, ...] | None = None,
    silently: bool = False,
    remark: str = "",
    found_by: str | None = None,
    **options: Any,
) -> lora_doctor.Diagnosis:
    """Found, fixed and trained where it ``occurs``; elsewhere silent, and the contract holds.

    Args:
        report: the seed report, in words; the heading of the row.
        failure: the row.
        occurs: what is true on this stack, by measurement and never by asking the tool.
        plainly: does the same with transformers and PEFT alone. Where the failure occurs it must
            raise (unless ``silently``), and the rule must know the message; elsewhere it must not.
        by_hand: model and recipe after a manual fix was followed, for a rule that has no other;
            as a third, options that are others then (an optimizer holds one model's tensors).
        silently: nothing is raised where the failure occurs: it only learns nothing, or wrong.
        remark: what the cell says beside the outcome: what this stack could not be asked.
        found_by: the rule that finds it on this stack, where that is another than the row's.
        options: of :func:`lora_doctor.fix`.
    """
    row, rule = rule, found_by or rule
    if plainly is not None:
        message, pasted = message_and_traceback(plainly)
        if occurs and not silently:
            assert message, f"{failure}: does not fail in plain transformers and PEFT"
            known = {match.rule.code for match in find_by_message(pasted, find_rules())}
            assert rule in known, f"explain does not know {rule} by: {message}"
        else:
            assert not message, f"{failure}: fails in plain transformers and PEFT: {message}"
    diagnosis = lora_doctor.fix(model, recipe, unsafe_fixes=True, worker=worker, **options)
    found = [finding for finding in diagnosis.findings if finding.rule == rule]
    if not occurs:
        assert not found, [finding.message for finding in found]
        assert rule in diagnosis.passed, [vars(item) for item in diagnosis.skipped]
        record(report, failure, row, DOES_NOT_OCCUR)
        return diagnosis
    assert found, ([finding.rule for finding in diagnosis.findings], diagnosis.skipped)
    if any(first_fix(finding, unsafe=True) for finding in found):
        left = [finding.message for finding in diagnosis.remaining or () if finding.rule == rule]
        assert not left, left
        on_demand = any(
            item.rule == rule and item.fix.safety == "unsafe" for item in diagnosis.applied
        )
        outcome = FOUND_AND_FIXED + (stacks_page.ON_DEMAND if on_demand else "")
        proof = diagnosis.after
    else:
        assert by_hand is not None, f"{rule} has only manual fixes: show that one works"
        options.update(by_hand[2] if len(by_hand) > 2 else {})
        again = lora_doctor.check(by_hand[0], by_hand[1], worker=worker, **options)
        assert rule not in {finding.rule for finding in again.findings}
        outcome, proof = FOUND_BY_HAND, again.before
    assert proof is not None and not proof.failed_checks, proof
    # Where this stack does not quantize on this machine, the rest of the recipe is what trains.
    assert proof.outcome == "passed" or proof.obstacle == "not-proven", proof
    remarks = "; ".join(filter(None, (remark, found_by and f"by {found_by}")))
    record(report, failure, row, f"{outcome} ({remarks})" if remarks else outcome)
    return diagnosis


def message_of(run: Callable[[], Any]) -> str:
    """The exception that a run ends in, as its last line shows it; empty when it ends well."""
    return message_and_traceback(run)[0]


def message_and_traceback(run: Callable[[], Any]) -> tuple[str, str]:
    """The last line of it, and the whole of what a user would paste; both empty when a run ends
    well."""
    try:
        run()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return f"{type(error).__name__}: {error}", traceback.format_exc()
    return "", ""
