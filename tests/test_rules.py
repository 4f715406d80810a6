"""Every rule's own examples, run: broken is found and trains after its fixes, healthy is silent.

A new rule is picked up by its place; nothing here names one.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.dry_run.judge import DryRunOptions, dry_run
from lora_doctor.engine.registry import check_symptoms, find_rules
from lora_doctor.engine.rule import Example, Rule
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.finding import first_fix
from lora_doctor.sandbox.worker import Worker
from tests.package_copy import lora_doctor_from
from tools import rule_examples, rule_pages
from tools.rule_examples import fixed, occurs_here, what_is_checked

RULES = find_rules()
#: The stack that quotes every example that occurs on it.
NEWEST = "transformers 5.24.0, peft 0.21.2"
#: Those of several processes take their time: `nox -s dry_run` runs them.
_ALL = os.environ.get("LORA_DOCTOR_SETUPS") == "all"
HEADINGS = ("## What happens", "## Why", "## Versions", "## Fix", "## Links")


def examples(kind: str) -> list[Any]:
    return [
        pytest.param(rule, example, id=f"{rule.code}-{example.model}-{number}")
        for rule in RULES
        for number, example in enumerate(rule.examples)
        if example.kind == kind
        and occurs_here(example)
        and not (example.script or example.installed)
    ]


def environments() -> list[object]:
    return [
        pytest.param(rule, example, id=f"{rule.code}-{example.kind}-{number}")
        for rule in RULES
        for number, example in enumerate(rule.examples)
        if example.installed and occurs_here(example)
    ]


def scripts() -> list[object]:
    return [
        pytest.param(rule, example, id=f"{rule.code}-{example.kind}-{number}")
        for rule in RULES
        for number, example in enumerate(rule.examples)
        if example.script and occurs_here(example)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_is_documented_and_carries_both_kinds_of_example(rule: type[Rule]) -> None:
    """The docstring is the documentation that `explain` prints, so its headings are fixed."""
    positions = [rule.documentation().find(heading) for heading in HEADINGS]
    assert all(position >= 0 for position in positions) and positions == sorted(positions)
    assert {example.kind for example in rule.examples} == {"broken", "healthy"}
    assert rule.summary.endswith(".") and len(rule.summary) < 90
    check_symptoms(rule)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_file_class_and_rule_name_say_the_same(rule: type[Rule]) -> None:
    """Whoever reads `LD201 no-target-matches` in a report knows which file and class to open."""
    words = rule.name.split("-")
    assert rule.__module__.rpartition(".")[2] == "_".join([rule.code.lower(), *words])
    assert rule.__name__ == "".join(word.capitalize() for word in words)


def said_by(recipe: Recipe) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What a recipe says, and the set-up that it is from: a fix changes one of them."""
    return recipe.values, recipe.set_up.entries if recipe.set_up else {}


def is_quoted(rule: type[Rule], example: Example, diagnosis: Diagnosis) -> None:
    """The rule's page quotes what was said: whoever changes a sentence, a piece of evidence or a
    fix sees in the page's diff what users will read."""
    stack, text = rule_pages.quoted(rule).get(rule.examples.index(example), ("", ""))
    here = rule_examples.stack()
    assert stack or here != NEWEST, f"not on the page: python -m tools.pages {rule.code}"
    if stack == here:
        now = rule_examples.said(rule, diagnosis)
        stale = f"the page says otherwise: python -m tools.pages {rule.code}\n{now}"
        assert rule_examples.comparable(now) == rule_examples.comparable(text), stale


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "example"), examples("broken"))
def test_broken_is_found_and_trains_after_its_fix(
    rule: type[Rule], example: Example, worker: Worker
) -> None:
    diagnosis = fixed(example, worker)
    found = [finding for finding in diagnosis.findings if finding.rule == rule.code]
    assert found, (
        f"{rule.code} is silent; found {[f.rule for f in diagnosis.findings]}, "
        f"skipped {[vars(s) for s in diagnosis.skipped]}"
    )
    assert all(finding.evidence and finding.message for finding in found)
    is_quoted(rule, example, diagnosis)
    for fix in (fix for finding in diagnosis.findings for fix in finding.fixes):
        edited = said_by(diagnosis.recipe.edit(fix.edits))
        changed = bool(fix.patch or fix.rewrites) or edited != said_by(diagnosis.recipe)
        assert fix.safety == "manual" or changed, fix
        assert fix.safety != "safe" or fix.executed.outcome == "passed", fix
    if not any(first_fix(finding, unsafe=True) for finding in found):
        return
    assert diagnosis.applied, "it has a fix that was not applied"
    if example.depth == "static":  # read again: nothing is run
        assert rule.code not in {finding.rule for finding in diagnosis.remaining or ()}
        return
    assert diagnosis.after is not None, diagnosis.undetermined
    failed = [vars(check) for check in diagnosis.after.failed_checks]
    # Where this stack does not quantize on this machine, the rest of the recipe trains.
    trains = diagnosis.after.outcome == "passed" or diagnosis.after.obstacle == "not-proven"
    assert trains and not failed, failed or diagnosis.after.reason
    left = [finding for finding in diagnosis.remaining or () if finding.rule == rule.code]
    assert not left, left


#: What the healthy examples came to: many rules have the same one.
_CHECKED: dict[str, Diagnosis] = {}


def _check_of(example: Example, worker: Worker) -> Diagnosis:
    asked = repr(replace(example, why="", requires={}))
    if asked not in _CHECKED:
        model, options = what_is_checked(example)
        _CHECKED[asked] = lora_doctor.check(
            model, dict(example.recipe) or None, depth=example.depth, worker=worker, **options
        )
    return _CHECKED[asked]


@pytest.mark.slow
# Equal ones beside each other, so that one process of several gets them.
@pytest.mark.parametrize(
    ("rule", "example"),
    sorted(examples("healthy"), key=lambda param: (param.values[1].model, repr(param.values[1]))),
)
def test_healthy_is_silent(rule: type[Rule], example: Example, worker: Worker) -> None:
    diagnosis = _check_of(example, worker)
    assert not [finding for finding in diagnosis.findings if finding.rule == rule.code]
    assert rule.code in diagnosis.passed, [vars(item) for item in diagnosis.skipped]


@functools.cache
def _dry_run_of(text: str, processes: int) -> Diagnosis:
    """The dry run of a script; several rules have the same healthy one."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(text)
        words = [str(script)]
        if processes > 1:
            run = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
            words = [sys.executable, *run, str(processes), str(script)]
        return dry_run(words, DryRunOptions())


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "example"), scripts())
def test_a_script_is_dry_run(rule: type[Rule], example: Example) -> None:
    """What a rule about commands finds in a broken one, and nothing in a healthy one."""
    if example.processes != 1 and not _ALL:
        pytest.skip("several processes: nox -s dry_run")
    diagnosis = _dry_run_of(example.script, example.processes)
    found = [finding for finding in diagnosis.findings if finding.rule == rule.code]
    assert bool(found) == (example.kind == "broken")
    assert found or rule.code in diagnosis.passed


@pytest.mark.parametrize(("rule", "example"), environments())
def test_packages_that_do_not_fit_are_found(
    rule: type[Rule], example: Example, tmp_path: Path
) -> None:
    """What ``env --check`` says of the installed packages behind those of the example."""
    given = Path(__file__).parent.parent / example.installed
    here = Path(lora_doctor.__file__).parent.parent
    path = Path(f"{given}{os.pathsep}{here}")
    done = lora_doctor_from(path, "env", "--check", "--output-format", "json", cwd=tmp_path)
    diagnosis = json.loads(done.stdout)
    found = [finding for finding in diagnosis["findings"] if finding["rule"] == rule.code]
    assert bool(found) == (example.kind == "broken"), done.stdout + done.stderr
    assert found or rule.code in diagnosis["passed"]
    assert done.returncode == bool(diagnosis["findings"])
