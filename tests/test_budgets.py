"""Budgets: numbers that a team asserts of its runs, kept or not, and shown with their limits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_doctor import reports
from lora_doctor.cli.commands import cli
from lora_doctor.cli.project import find_project
from lora_doctor.errors import InputError
from lora_doctor.recipe.gpus import find_gpu
from lora_doctor.results.budget import NUMBERS, Budget, BudgetCheck, held_against, read_budgets
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.text import gib
from tests import diagnoses

CONFIGURATION = """
depth = "meta"
target-modules = ["c_attn"]
max-length = 64
[budgets]
trainable-share = { max = 0.05 }
[set-ups.small]
model = "arch:gpt2"
[set-ups.small.budgets]
adapted-share = { min = 0.9, level = "warn" }
rows-cut = { max = 0.01 }
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_doctor", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"trainable-shares": {"max": 0.1}}, "did you mean 'trainable-share'?"),
        ({"trainable-share": 0.1}, "budgets.trainable-share: is not a table"),
        ({"trainable-share": {"most": 0.1}}, "unknown key 'most'"),
        ({"trainable-share": {}}, "give min, max or both"),
        ({"trainable-share": {"max": 2}}, "a share from 0 to 1"),
        ({"trainable-share": {"max": True}}, "a share from 0 to 1"),
        ({"rows-cut": {"min": 0.5, "max": 0.1}}, "min is above max"),
        ({"rows-cut": {"max": 0.1, "level": "fatal"}}, "level: expected one of warn, error"),
        ({"supervised-tokens": {"min": float("nan")}}, "a number from 0 on"),
        ({"peak-memory": {"max": "l44"}}, "did you mean l4"),
    ],
)
def test_a_wrong_budget_is_told_in_one_line(table: Any, told: str) -> None:
    with pytest.raises(InputError) as raised:
        read_budgets(table, "lora-doctor.toml")
    assert told in str(raised.value) and str(raised.value).startswith("lora-doctor.toml: budgets")


def test_memory_is_a_size_or_a_card() -> None:
    by_size, by_card = (read_budgets({"peak-memory": {"max": text}}, "")[0]
                        for text in ("20GB", "A100-80GB"))  # fmt: skip
    assert by_size.most == 20 << 30 and by_card.most == find_gpu("a100-80gb").memory
    assert by_card.words() == f"at most {gib(by_card.most)} (a100-80gb)"
    assert by_card.level == "error" and by_size.words() == "at most 20.0 GiB"


def test_the_budgets_of_the_docs_are_read(tmp_path: Path) -> None:
    """Of every set-up, and one set-up's own."""
    gate = (Path(__file__).parents[1] / "docs" / "gate.md").read_text("utf-8")
    section = gate.partition("## Budgets")[2]
    block = section.partition("```toml\n")[2].partition("```")[0]
    own = '[tool.lora-doctor.set-ups.sft]\nmodel = "arch:gpt2"\n'
    (tmp_path / "pyproject.toml").write_text(own + block)
    project = find_project(cli, tmp_path)
    assert project is not None
    names = [*project.budgets, *project.set_ups[0].budgets]
    assert sorted(names) == sorted(NUMBERS)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(1, 2, "unsure"), (2, 5, "kept"), (0, 1, "broken"), (6, 7, "broken"), (4, 6, "unsure")],
)
def test_a_number_with_margins(low: float, high: float, outcome: str) -> None:
    """It is kept only where all of the margin is within the limits."""
    budget = Budget("supervised-tokens", "count", 2, 5, "error")
    assert held_against(budget, (low + high) / 2, low, high, "").outcome == outcome


# --- in every format ------------------------------------------------------------------------------


def with_budgets() -> Diagnosis:
    kept = Budget("trainable-share", "share", None, 0.02, "error")
    open_ = Budget("rows-cut", "share", None, 0.01, "error")
    checks = (BudgetCheck(kept, "kept", 0.004, "4 of 1,000 parameters"),
              BudgetCheck(open_, "unmeasured", detail="no training data was given"))  # fmt: skip
    return replace(diagnoses.phi3(), budgets=checks)


def test_each_is_shown_with_number_and_limit() -> None:
    diagnosis = with_budgets()
    for name in ("full", "html", "markdown", "junit"):
        text = reports.render(diagnosis, name, width=160)
        assert "0.4%" in text and "at most 2%" in text, name
        assert "no training data was given" in text, name
    (run_,) = json.loads(reports.render(diagnosis, "sarif"))["runs"]
    assert [one["outcome"] for one in run_["properties"]["budgets"]] == ["kept", "unmeasured"]
    data = json.loads(reports.render(diagnosis, "json"))
    assert data["budgets"][0]["value"] == 0.004
    assert Diagnosis.from_json(data).budgets == diagnosis.budgets


# --- at the command line --------------------------------------------------------------------------


def test_budgets_of_a_project_and_of_a_set_up(tmp_path: Path) -> None:
    """One is kept, one is not, and one has no data to be measured on: it leaves the answer open,
    whatever else was found."""
    (tmp_path / "lora-doctor.toml").write_text(CONFIGURATION)
    done = run("check", "--output", "json=r.json", "--output-format", "concise", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    data = json.loads((tmp_path / "r.json").read_text())
    outcomes = {one["budget"]["name"]: one["outcome"] for one in data["budgets"]}
    assert outcomes == {"trainable-share": "kept", "adapted-share": "broken",
                        "rows-cut": "unmeasured"}  # fmt: skip
    (finding,) = [one for one in data["findings"] if one["rule"] == "LD732"]
    assert finding["severity"] == "warning" and "at least 90%" in finding["message"]
    assert "rows-cut (no training data was given" in data["undetermined"]
    assert "undetermined: A budget could not be measured" in done.stdout
    configuration = CONFIGURATION.replace("rows-cut", "rows-cuts")
    (tmp_path / "lora-doctor.toml").write_text(configuration)
    wrong = run("check", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'rows-cut'?" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
