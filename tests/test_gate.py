"""The gate of a team: what is known passes, what is new fails; stored results are read again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lora_doctor import reports
from lora_doctor.engine.registry import find_rules
from lora_doctor.results.baseline import compare, with_baseline
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.finding import Finding, Location, Measurement, Proof
from lora_doctor.results.fingerprints import fingerprints
from lora_doctor.results.stored import read_diagnosis
from tests import diagnoses
from tests.cli import completed as run

#: Names of another architecture.
RECIPE = {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}


def finding(rule: str, path: str, message: str, severity: Any = "error") -> Finding:
    evidence = (Measurement("layers matched", "0 of 48", "installed PEFT"),)
    place, proof = Location("recipe", path), Proof("executed", "PEFT refused it")
    return Finding(rule, "some-rule", severity, message, place, evidence, proof)


def found(*findings: Finding, **changes: Any) -> Diagnosis:
    return dataclasses.replace(diagnoses.phi3(), findings=findings, accepted=(), **changes)


TARGETS = finding("LD201", "target_modules", "0 of 48 layers match")
PATTERN = finding("LD213", "rank_pattern", "matches nothing", "warning")


def stored(diagnosis: Diagnosis, path: Path) -> str:
    path.write_text(reports.render(diagnosis, "json"), "utf-8")
    return path.name


# --- diff -----------------------------------------------------------------------------------------


def test_diff_names_what_is_new_gone_changed_and_moved(tmp_path: Path) -> None:
    environment = {**diagnoses.ENVIRONMENT, "packages": {"torch": "2.13.0", "peft": "0.18.0"}}
    before = found(TARGETS, PATTERN, environment=environment)
    changed = dataclasses.replace(TARGETS, message="0 of 32 layers match")
    saved = finding("LD602", "modules_to_save", "trained and not saved")
    now = found(changed, saved, environment={**environment, "packages": {"torch": "2.14.0"}})
    files = (stored(before, tmp_path / "a.json"), stored(now, tmp_path / "b.json"))
    done = run("diff", *files, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        "new      LD602 error at modules_to_save: trained and not saved",
        "gone     LD213 warning at rank_pattern: matches nothing",
        "changed  LD201 error at target_modules: 0 of 48 layers match",
        "     to  LD201 error at target_modules: 0 of 32 layers match",
        "version  torch 2.13.0 -> 2.14.0",
        "version  peft 0.18.0 -> not installed",
        "1 finding found both times",
    ]
    data = json.loads(run("diff", *files, "--output-format", "json", cwd=tmp_path).stdout)
    assert [item["rule"] for item in data["new"]] == ["LD602"]
    assert run("diff", *reversed(files), "--fail-on", "error", cwd=tmp_path).returncode == 0
    same = run("diff", files[0], files[0], cwd=tmp_path)
    assert same.returncode == 0 and same.stdout.startswith("no difference\n2 findings")


def test_a_finding_that_got_worse_fails_the_gate(tmp_path: Path) -> None:
    worse = dataclasses.replace(PATTERN, severity="error")
    files = (stored(found(PATTERN), tmp_path / "a.json"), stored(found(worse), tmp_path / "b.json"))
    assert run("diff", *files, "--fail-on", "error", cwd=tmp_path).returncode == 1


# --- baseline -------------------------------------------------------------------------------------


def test_what_a_baseline_holds_is_shown_and_fails_nothing() -> None:
    """Its numbers may have moved; what is gone is told; what is new counts."""
    moved = dataclasses.replace(TARGETS, message="0 of 32 layers match")
    diagnosis = with_baseline(found(moved), found(TARGETS, PATTERN), "base.json")
    assert diagnosis.not_accepted(diagnosis.findings) == ()
    text = reports.render(diagnosis, "full", width=100)
    assert "0 of 32 layers match" in text and "known: it is in base.json" in text
    assert "gone since base.json: LD213 matches nothing" in text
    for name in ("github", "gitlab", "json-lines", "grouped"):
        assert "LD201" not in reports.render(diagnosis, name)
    again = with_baseline(found(moved, PATTERN), found(TARGETS), "base.json")
    assert again.not_accepted(again.findings) == (PATTERN,)


def test_two_alike_and_one_of_them_known() -> None:
    second = dataclasses.replace(TARGETS, message="another of the kind")
    diagnosis = with_baseline(found(TARGETS, second), found(TARGETS), "base.json")
    assert diagnosis.not_accepted(diagnosis.findings) == (second,)
    assert compare(found(TARGETS), diagnosis).new == (second,)


def test_a_baseline_at_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    check = ("check", "arch:llama", "--recipe", "recipe.json", "--depth", "meta")
    first = run(*check, "--output", "json=base.json", cwd=tmp_path)
    assert first.returncode == 1, first.stderr
    known = run(*check, "--baseline", "base.json", cwd=tmp_path)
    assert known.returncode == 0 and "known: it is in base.json" in known.stdout, known.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), ("{", "is not JSON"), ("{}", "schema_version")],
)
def test_a_baseline_that_is_none_is_refused_before_anything_runs(
    tmp_path: Path, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "base.json").write_text(content)
    done = run("check", "arch:llama", "--baseline", "base.json", cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1


# --- stored results -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(diagnoses.ALL))
def test_a_stored_result_is_rendered_as_it_was(name: str, tmp_path: Path) -> None:
    given = diagnoses.ALL[name]()
    file = stored(given, tmp_path / "result.json")
    read = read_diagnosis(tmp_path / file)
    for format in ("concise", "github", "junit"):
        assert reports.render(read, format) == reports.render(given, format)


def test_report_renders_a_file_in_any_format(tmp_path: Path) -> None:
    file = stored(found(TARGETS), tmp_path / "result.json")
    done = run(
        "report", file, "--output-format", "concise", "--output", "html=a.html", cwd=tmp_path
    )
    assert done.returncode == 1 and "LD201" in done.stdout, done.stderr
    assert "<html" in (tmp_path / "a.html").read_text("utf-8")
    assert run("report", "none.json", cwd=tmp_path).returncode == 2


def test_a_file_is_the_same_in_every_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline is made on one machine and compared on another; a path outside stays whole."""
    (rule,) = (one for one in find_rules() if one.code == "LD919")
    paths, names = [], set()
    given: Any = {
        "evidence": (Measurement("rows", 8, "the file"),),
        "proof": Proof("measured", "rows"),
    }
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for path in (tmp_path / name / "data" / "rows.jsonl", Path("data/rows.jsonl")):
            one = rule().finding("error", "no", location=Location("file", str(path)), **given)
            paths.append(one.location.path)
            names |= set(fingerprints([one]))
    assert paths == ["data/rows.jsonl"] * 4 and len(names) == 1
    outside = dataclasses.replace(one.location, path=str(tmp_path / "rows.jsonl"))
    assert rule().finding("error", "no", location=outside, **given).location == outside
