"""``fix --apply`` writes all of its files or none, over nothing that is not its own, and a run that
was killed meanwhile is told of by the next one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.errors import InputError
from lora_doctor.prescription.journal import path_of
from lora_doctor.prescription.write_fix import PRESCRIPTION_NAME, RECIPE_NAME, REPORT_NAME, Plan
from lora_doctor.recipe.files.prescription import read_prescription
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.results.diagnosis import Diagnosis
from tests import diagnoses
from tests.cli import ROOT, lora_doctor

RECIPE = "# mine\ntask_type: CAUSAL_LM\ntarget_modules: [q_proj, v_proj]\nr: 16\n"


@pytest.fixture
def diagnosis() -> Diagnosis:
    """Fixed: an edit of ``target_modules`` and a patch."""
    return diagnoses.phi3()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def plan_of(recipe: Path | None, folder: Path) -> Plan:
    return Plan.make(str(recipe) if recipe else None, str(folder), write=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_everything_is_written_and_the_old_recipe_is_kept(
    tmp_path: Path, recipe: Path, diagnosis: Diagnosis
) -> None:
    written = plan_of(recipe, tmp_path).write(diagnosis)
    assert sorted(path.name for path in written) == sorted(
        ["mine.yaml", "mine.yaml.bak", PRESCRIPTION_NAME, REPORT_NAME]
    )
    assert sorted(contents(tmp_path)) == sorted(path.name for path in written)
    assert (tmp_path / "mine.yaml.bak").read_text() == RECIPE
    assert recipe.read_text().startswith("# mine\n") and "qkv_proj" in recipe.read_text()


@pytest.mark.parametrize("how", ["changed", "broken", "deleted", "a folder"])
def test_a_recipe_that_changed_meanwhile_is_left_alone(
    tmp_path: Path, recipe: Path, diagnosis: Diagnosis, how: str
) -> None:
    """The edits were found for another text: they are spliced into nothing else."""
    plan = plan_of(recipe, tmp_path)
    recipe.unlink()
    if how == "a folder":
        recipe.mkdir()
    elif how != "deleted":
        recipe.write_text(RECIPE + ("r: [\n" if how == "broken" else "lora_alpha: 32\n"))
    before = sorted(os.listdir(tmp_path)), recipe.read_bytes() if recipe.is_file() else None
    with_diff = plan.with_diff(diagnosis)
    assert "+target_modules" in with_diff.recipe_diff, "what was read is what is shown"
    with pytest.raises(InputError, match=r"mine\.yaml.*nothing was written.*run fix again"):
        plan.write(with_diff)
    after = sorted(os.listdir(tmp_path)), recipe.read_bytes() if recipe.is_file() else None
    assert after == before


def test_a_recipe_that_changes_at_the_last_moment_is_left_alone(
    tmp_path: Path, recipe: Path, diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(recipe, tmp_path)
    real = os.fsync

    def change_too(descriptor: int) -> None:
        recipe.write_text("r: 5\n")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", change_too)
    with pytest.raises(InputError, match="was changed while"):
        plan.write(diagnosis)
    assert contents(tmp_path) == {"mine.yaml": b"r: 5\n"}


@pytest.mark.parametrize("name", [RECIPE_NAME, PRESCRIPTION_NAME, REPORT_NAME])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_somebody_else_wrote_under_our_names_is_refused(
    tmp_path: Path, diagnosis: Diagnosis, name: str, when: str
) -> None:
    plan = plan_of(None, tmp_path)
    (tmp_path / name).write_text("r: 64  # by hand\n")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=rf"{name}.*not written by lora-doctor.*choose another"):
        plan_of(None, tmp_path) if when == "before" else plan.write(diagnosis)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [RECIPE_NAME, PRESCRIPTION_NAME, REPORT_NAME])
def test_a_link_to_nothing_under_our_names_is_not_followed(tmp_path: Path, name: str) -> None:
    """A model repository may bring such a link, to a place of its choice."""
    (tmp_path / name).symlink_to("elsewhere")
    with pytest.raises(InputError, match="is a link to nothing"):
        plan_of(None, tmp_path)


def test_what_an_earlier_run_wrote_is_kept_as_a_backup(
    tmp_path: Path, diagnosis: Diagnosis
) -> None:
    plan_of(None, tmp_path).write(diagnosis)
    edited = tmp_path / RECIPE_NAME
    edited.write_text(edited.read_text() + "lora_dropout: 0.1\n")
    first = contents(tmp_path)
    written = plan_of(None, tmp_path).write(replace(diagnosis, seconds=99.0))
    after = contents(tmp_path)
    assert after[f"{RECIPE_NAME}.bak"] == first[RECIPE_NAME], "with what was added by hand"
    assert tmp_path / f"{RECIPE_NAME}.bak" in written
    assert f"{PRESCRIPTION_NAME}.bak" not in after, "the same is not written again"
    assert f"{REPORT_NAME}.bak" not in after, "nothing in a report is lost that a run does not tell"
    assert after[REPORT_NAME] != first[REPORT_NAME]


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"versions": {}}, False),
        ({"model": "another"}, True),
        ({"patches": [{"name": "drop_none", "parameters": {}}]}, True),
    ],
)
def test_a_prescription_that_still_stands_for_something_is_kept(
    tmp_path: Path, diagnosis: Diagnosis, changed: dict[str, Any], kept: bool
) -> None:
    """Its patches, or another model's edits, are nowhere else; edits are in the recipe."""
    plan_of(None, tmp_path).write(diagnosis)
    file = tmp_path / PRESCRIPTION_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    earlier = file.read_bytes()
    plan_of(None, tmp_path).write(replace(diagnosis, seconds=99.0))
    after = contents(tmp_path)
    assert after.get(f"{PRESCRIPTION_NAME}.bak") == (earlier if kept else None)


def test_a_full_disk_changes_nothing(
    tmp_path: Path, small_disk: Path, diagnosis: Diagnosis
) -> None:
    """The recipe would fit, the report does not."""
    recipe = small_disk / "mine.yaml"
    recipe.write_text(RECIPE)
    with pytest.raises(InputError, match="No space left"):
        plan_of(recipe, small_disk).write(diagnosis)
    assert contents(small_disk) == {"mine.yaml": RECIPE.encode()}
    with pytest.raises(InputError, match="No space left"):
        plan_of(recipe, tmp_path / "disk").write(diagnosis)
    home = tmp_path / "home"
    home.mkdir()
    outside = home / "mine.yaml"
    outside.write_text(RECIPE)
    with pytest.raises(InputError, match="No space left"):
        plan_of(outside, small_disk).write(diagnosis)
    assert contents(home) == {"mine.yaml": RECIPE.encode()}
    assert contents(small_disk) == {"mine.yaml": RECIPE.encode()}


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_rename_that_fails_undoes_those_before_it(
    tmp_path: Path,
    recipe: Path,
    diagnosis: Diagnosis,
    monkeypatch: pytest.MonkeyPatch,
    fails_at: int,
) -> None:
    plan = plan_of(recipe, tmp_path)
    calls = 0
    real = os.replace

    def failing(old: Path, new: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(5, "Input/output error")
        real(old, new)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(InputError, match="Input/output error"):
        plan.write(diagnosis)
    assert contents(tmp_path) == {"mine.yaml": RECIPE.encode()}


def test_what_cannot_be_undone_is_said_and_stays_in_the_journal(
    tmp_path: Path, recipe: Path, diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(recipe, tmp_path)
    plan.write(diagnosis)
    recipe.write_text(RECIPE)
    plan = plan_of(recipe, tmp_path)
    real, calls = os.replace, 0

    def failing(old: Path, new: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(5, "Input/output error")
        real(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises(InputError, match=r"could not be undone: .*lora-doctor\.html"):
            plan.write(replace(diagnosis, seconds=5.0))
    assert path_of(recipe).exists()
    with pytest.raises(InputError, match="stopped halfway"):
        plan_of(recipe, tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from lora_doctor.prescription.write_fix import Plan
from tests import diagnoses
at, calls, real = int(sys.argv[1]), 0, getattr(os, sys.argv[2])
def killing(*arguments):
    global calls
    if calls == at:
        os.kill(os.getpid(), signal.SIGKILL)
    calls += 1
    return real(*arguments)
plan = Plan.make("mine.yaml", ".", write=True)
setattr(os, sys.argv[2], killing)
plan.write(diagnoses.phi3())
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("call", "at", "state"),
    [
        ("fsync", 1, "nothing was replaced yet"),
        ("fsync", 2, "nothing was replaced yet"),
        ("link", 1, "nothing was replaced yet"),
        ("replace", 0, "nothing was replaced yet"),
        ("replace", 1, "prescription.json replaced, "),
        ("replace", 2, "lora-doctor.html replaced, "),
    ],
)
def test_after_a_kill_the_next_run_says_what_was_left_and_how_to_undo_it(
    tmp_path: Path, recipe: Path, call: str, at: int, state: str
) -> None:
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(at), call],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path_of(recipe).exists()
    with pytest.raises(InputError) as caught:
        plan_of(recipe, tmp_path)
    said = str(caught.value)
    assert "an earlier `fix --apply` was stopped halfway" in said and state in said
    undo = said.split("to undo it: ")[1]
    subprocess.run(undo, shell=True, check=True, cwd=tmp_path)
    left = contents(tmp_path)
    left.pop("mine.yaml.bak", None)  # a copy of what is there
    assert left == before
    plan_of(recipe, tmp_path)


def test_other_commands_tell_of_it_too(tmp_path: Path, recipe: Path) -> None:
    """They change nothing, and read a recipe that may be half of what it should be."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    new = {"file": str(recipe), "new": ".mine.yaml.0.tmp", "old": None, "sha256": "0"}
    path_of(recipe).write_text(json.dumps({"files": [new]}))
    result = lora_doctor("check", tmp_path, "--depth", "static", "--recipe", recipe)
    assert result.code == 0 and "lora-doctor: note: an earlier `fix --apply`" in result.err
    refused = lora_doctor("fix", tmp_path, "--recipe", recipe, "--apply", cwd=tmp_path)
    assert refused.code == 2 and "stopped halfway" in refused.one_line_error


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_kill_after_the_last_rename_leaves_only_to_tidy_up(tmp_path: Path, recipe: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "5", "fsync"],  # of a folder
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(InputError, match="stopped when all was written; to tidy up: rm ") as caught:
        plan_of(recipe, tmp_path)
    tidy = str(caught.value).split("to tidy up: ")[1]
    subprocess.run(tidy, shell=True, check=True, cwd=tmp_path)
    assert sorted(contents(tmp_path)) == sorted(
        ["mine.yaml", "mine.yaml.bak", PRESCRIPTION_NAME, REPORT_NAME]
    )
    assert "qkv_proj" in recipe.read_text()


def test_a_journal_is_not_believed(tmp_path: Path, recipe: Path) -> None:
    """One that came with a repository may name any file: none of its names is repeated."""
    home = tmp_path / "home.txt"
    home.write_text("x")
    entries = [
        {"file": str(home), "new": ".x.tmp", "old": None, "sha256": "0"},
        {"file": str(recipe), "new": "../home.txt", "old": None, "sha256": "0"},
        {"file": str(recipe), "new": "home.txt", "old": None, "sha256": "0"},
        {"file": str(recipe), "new": ".a.tmp", "old": "home.txt", "sha256": "0"},
        {"file": 3, "new": ".a.tmp", "old": None, "sha256": "0"},
        "nonsense",
    ]
    for text in (*(json.dumps({"files": [entry]}) for entry in entries), "{", "[]", "\0"):
        path_of(recipe).write_text(text)
        with pytest.raises(InputError) as caught:
            plan_of(recipe, tmp_path)
        assert "rm" not in shlex.split(str(caught.value).replace("`", "")), text
        assert "home.txt" not in str(caught.value)


def test_two_applies_at_once_do_not_mix(tmp_path: Path, recipe: Path, diagnosis: Diagnosis) -> None:
    from lora_doctor.prescription.journal import journal

    plan = plan_of(recipe, tmp_path)
    with journal(recipe, []):
        with pytest.raises(InputError, match="another `lora-doctor fix --apply` is writing here"):
            plan.write(diagnosis)
        with pytest.raises(InputError, match="is writing here; wait"):
            plan_of(recipe, tmp_path)
    plan.write(diagnosis)
    assert not path_of(recipe).exists()


def test_a_file_name_that_is_no_text_is_written_all_the_same(
    tmp_path: Path, diagnosis: Diagnosis
) -> None:
    """MODEL and folder may be bytes that no encoding knows."""
    folder = tmp_path / os.fsdecode(b"\xff\x1b[2J")
    folder.mkdir()
    odd = replace(diagnosis, model=replace(diagnosis.model, name=str(folder)))
    plan_of(None, folder).write(odd)
    assert read_prescription(folder / PRESCRIPTION_NAME).model
    read_recipe(folder / RECIPE_NAME)
