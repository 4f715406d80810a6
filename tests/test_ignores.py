"""Comments by which a team accepts a finding beside the setting that causes it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.engine.ignored import with_ignored
from lora_doctor.recipe.ignores import ignores_in, read_ignores
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.finding import Finding, Location, Measurement, Proof
from lora_doctor.static.place import Place
from tests import diagnoses

YAML = """\
r: 8
# lora-doctor: ignore[LD202, ld999] c_proj alone is meant
# and this line goes on about it
target_modules: [c_proj, q_proj]
# lora-doctor: ignore[LD214]
lora_dropout: 0.1
lora_alpha: 16  # lora-doctor: ignore[LD201] once it was
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lora_doctor", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


# --- where a comment holds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("r: 8 # lora-doctor: ignore[LD201] meant", (1, 1)),
        ("# lora-doctor: ignore[LD201] meant\nr: 8\nx: 1", (1, 2)),
        ("#lora-doctor:ignore[LD201]: meant\n# more\nr: 8\nx: 1", (1, 3)),
        ("# lora-doctor: ignore[LD201] meant\n\nr: 8", (1, 2)),
        ("# lora-doctor: ignore[LD201] meant\r\npython a.py \\\n  --r 8 \\\n  --x 1\ny", (1, 4)),
    ],
)
def test_a_comment_holds_for_its_line_or_the_line_below(text: str, lines: tuple[int, int]) -> None:
    (comment,) = ignores_in(text, "a")
    assert (comment.lines[0], comment.lines[-1]) == lines
    assert comment.codes == ("LD201",) and comment.reason == "meant" and not comment.wrong


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# lora-doctor: ignore[LD201]", "give the reason"),
        ("# lora-doctor: ignore[LD201]  -- ", "give the reason"),
        ("# lora-doctor: ignore because", "give the codes"),
        ("# lora-doctor: ignore[] because", "give the codes"),
        ("# lora-doctor: ignore[LD201 because", "give the codes"),
        ("# lora-doctor: ignore[LD201, all] because", "'ALL' is not the code"),
    ],
)
def test_a_comment_that_says_too_little_accepts_nothing(text: str, told: str) -> None:
    (comment,) = ignores_in(text, "a")
    assert told in comment.wrong


def test_what_stands_in_a_string_is_no_comment() -> None:
    comment_line = "r = 8  # see # lora-doctor: ignore[LD202] x\n"
    text = 'HELP = "add # lora-doctor: ignore[LD201] reason"\n' + comment_line
    (comment,) = ignores_in(text, "a.py", python=True)
    assert comment.codes == ("LD202",) and comment.place.line == 2
    (cell,) = ignores_in("%pip install peft\n" + comment_line, "a.ipynb", python=True)
    assert cell.place.line == 2


def test_cells_of_a_notebook(tmp_path: Path) -> None:
    source = ["config = LoraConfig(\n", "    r=8,  # lora-doctor: ignore[LD201] meant\n", ")"]
    cells = [{"cell_type": "markdown", "source": "# lora-doctor: ignore[LD203] no"},
             {"cell_type": "code", "source": source}]  # fmt: skip
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    (comment,) = read_ignores(str(path))
    assert str(comment.place) == f"{path}:cell 2:2"
    assert read_ignores(str(tmp_path / "none.ipynb")) == []


# --- at the command line --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe with comments, checked once."""
    folder = tmp_path_factory.mktemp("ignores")
    (folder / "sft.yaml").write_text(YAML)
    formats = ("json", "sarif", "junit", "full", "concise")
    outputs = [f"--output={name}=r.{name}" for name in formats]
    done = run(
        "check", "arch:gpt2", "--recipe", "sft.yaml", "--depth", "meta", *outputs, cwd=folder
    )
    texts = {name: (folder / f"r.{name}").read_text("utf-8") for name in formats}
    return {"code": done.returncode, "stderr": done.stderr, **texts}


def test_a_comment_accepts_the_finding_of_its_line(checked: dict[str, Any]) -> None:
    data = json.loads(checked["json"])
    assert [one["where"] for one in data["accepted"]] == ["sft.yaml:2"], checked["stderr"]
    assert data["accepted"][0]["reason"] == "c_proj alone is meant"
    assert "LD202" in {one["rule"] for one in data["findings"]}
    assert "ignored: c_proj alone is meant (sft.yaml:2)" in checked["full"]
    assert "1 ignored" in checked["full"]
    assert "ignored: c_proj alone is meant" in checked["concise"]
    (run_,) = json.loads(checked["sarif"])["runs"]
    (found,) = [one for one in run_["results"] if one["ruleId"] == "LD202"]
    (suppression,) = found["suppressions"]
    assert suppression["kind"] == "inSource"
    assert suppression["justification"] == "c_proj alone is meant"
    assert 'message="ignored: c_proj alone is meant"' in checked["junit"]


def test_comments_that_accept_nothing_are_told(checked: dict[str, Any]) -> None:
    told = [one["text"] for one in json.loads(checked["json"])["notes"] if one["kind"] == "ignore"]
    assert any("sft.yaml:2: ignore[LD999]" in text and "no such rule" in text for text in told)
    assert any(text.startswith("sft.yaml:5: ") and "give the reason" in text for text in told)
    assert any("sft.yaml:7: ignore[LD201]" in text and "finds nothing" in text for text in told)
    assert len(told) == 3
    (run_,) = json.loads(checked["sarif"])["runs"]
    notes = [one["message"]["text"] for one in run_["invocations"][0]["toolExecutionNotifications"]]
    assert set(told) <= set(notes)


def test_fix_leaves_alone_what_is_accepted(tmp_path: Path) -> None:
    recipe = tmp_path / "sft.yaml"
    recipe.write_text("target_modules: [c_attn, q_proj]  # lora-doctor: ignore[LD202] both meant\n")
    done = run("fix", "arch:gpt2", "--recipe", "sft.yaml", "--diff", cwd=tmp_path)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


# --- in scripts -----------------------------------------------------------------------------------


def finding(location: Location, written: str = "") -> Finding:
    evidence = (Measurement("layers matched", "0 of 48", "installed PEFT"),)
    return Finding("LD201", "some-rule", "error", "no layer matches", location, evidence,
                   Proof("read", ""), written=written)  # fmt: skip


def test_findings_of_a_script_by_their_line_or_by_the_key_that_is_set_there(tmp_path: Path) -> None:
    """A comment in a file that is not of the recipe accepts nothing: it may be a stranger's."""
    script, model = tmp_path / "train.py", tmp_path / "modeling.py"
    for file in (script, model):
        file.write_text("import peft\nr = 8  # lora-doctor: ignore[LD201] meant\n")
    places = {"target_modules": Place(str(script), 2), "r": Place(str(script), 1)}
    recipe = Recipe({"r": 8}, file=script, places=places)
    accepted = (
        finding(Location("recipe", "target_modules")),
        finding(Location("file", str(script), 2)),
        finding(Location("module", "lm_head"), written=f"{script}:2"),
    )
    others = (
        finding(Location("recipe", "r")),
        finding(Location("file", str(model), 2)),
        finding(Location("module", "lm_head")),
    )
    diagnosis = replace(diagnoses.phi3(), recipe=recipe, findings=(*accepted, *others), accepted=())
    found = with_ignored(diagnosis, ["LD201"])
    assert found.not_accepted(found.findings) == others
    assert {item.where for item in found.accepted} == {f"{script}:2"}
    alone = with_ignored(replace(diagnosis, findings=others), ["LD201"])
    assert not alone.accepted and "LD201 is found at" in alone.notes[-1].text


def test_in_a_dry_run_the_line_that_set_the_key_counts(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("# lora-doctor: ignore[LD201] meant\nconfig = LoraConfig()\n")
    diagnosis = replace(diagnoses.phi3(), recipe=Recipe(), accepted=(),
                        findings=(finding(Location("recipe", "r")),))  # fmt: skip
    found = with_ignored(diagnosis, ["LD201"], {"r": f"{script}:2", "dtype": "command line"})
    assert found.not_accepted(found.findings) == ()
