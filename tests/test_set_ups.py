"""Set-ups where people keep them: found at the right line, mended in the file, and trained.

Every set-up is read here; what builds models is a sample in CI and all of them in ``nox -s
set_ups``, which also asks the frameworks themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

import lora_doctor
from lora_doctor.prescription.write_fix import Plan
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.reports._records import records
from lora_doctor.results.formats import render
from lora_doctor.sandbox.worker import Worker
from tests.set_up_files import FOLDER, FORMATS, TWINS, Twin

# The releases of the frameworks that are read here ask for a transformers of their time: on an
# older one no such set-up can run, and what they do about its checkpointing is not known.
if Version(metadata.version("transformers")) < Version("4.46"):
    pytest.skip("no release of these frameworks runs on this transformers", allow_module_level=True)

#: Every set-up instead of one of each format.
ALL = bool(os.environ.get("LORA_DOCTOR_SET_UPS"))
SAMPLE = [
    next(twin for twin in TWINS if twin.name.startswith(kind) and twin.rule == rule)
    for kind, rule in zip(FORMATS, ("LD530", "LD532", "LD531", "LD201"), strict=True)
]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1) as shared:
        yield shared


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.id)
def test_a_set_up_is_read_with_its_places(twin: Twin, tmp_path: Path) -> None:
    """Whose it is follows from the content, and each entry stands where it is said to."""
    given = twin.copy(tmp_path, broken=False)
    recipe = read_recipe(given)
    names = {"llamafactory": "LLaMA-Factory", "axolotl": "axolotl", "trl": "TRL",
             "ms_swift": "ms-swift"}  # fmt: skip
    assert recipe.set_up is not None
    assert recipe.set_up.format == names[twin.name.partition("/")[0]]
    assert not recipe.set_up.unknown, "a healthy set-up has no key that its framework lacks"
    assert recipe.get("r") and recipe.get("target_modules")
    # Each of these frameworks makes the inputs of checkpointed layers need a gradient.
    on = recipe.get("gradient_checkpointing")
    assert recipe.get("enable_input_require_grads") is (True if on else None)
    for key, place in recipe.places.items():
        text = Path(place.file).read_bytes().decode("utf-8-sig")
        line = text.splitlines()[(place.line or 0) - 1]
        name = recipe.names.get(key, key)
        assert name.replace("_", "") in line.replace("_", "").replace("-", "") or "$" in line


@pytest.mark.slow
@pytest.mark.parametrize("twin", TWINS if ALL else SAMPLE, ids=lambda twin: twin.id)
def test_a_mistake_is_found_mended_and_trains(
    twin: Twin, tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding has the line of the mistake; ``fix --apply`` mends it there, the set-up trains,
    and a second run finds nothing more to change."""
    monkeypatch.chdir(tmp_path)
    given = twin.copy(tmp_path, broken=True)
    file, line = _found(twin, given, worker)
    if twin.new:  # a switch that is missing has no line of its own
        assert (file, line) == (Path(twin.name).name, twin.line(tmp_path))
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    (tmp_path / "out").mkdir()
    plan = Plan.make(given, str(tmp_path / "out"), True)
    diagnosis = lora_doctor.fix(given, unsafe_fixes=twin.unsafe, worker=worker)
    plan.write(plan.with_diff(diagnosis))
    changed = [file for file, data in before.items() if file.read_bytes() != data]
    assert changed == [tmp_path / Path(twin.name).name]
    assert diagnosis.after is not None and diagnosis.after.outcome == "passed"
    again = lora_doctor.fix(given, unsafe_fixes=twin.unsafe, worker=worker)
    assert not [finding for finding in again.findings if finding.rule == twin.rule]
    assert not again.applied, "a second run changes nothing"


def _found(twin: Twin, given: Path, worker: Worker) -> tuple[str, int | None]:
    diagnosis = lora_doctor.check(given, depth="meta", worker=worker)
    found = [record for record in records(diagnosis) if record.rule == twin.rule]
    assert found, [record.rule for record in records(diagnosis)]
    return found[0].file, found[0].line


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_a_healthy_set_up_gives_one_line(kind: str, worker: Worker) -> None:
    """No finding, whatever the framework's own ways are."""
    twins = [twin for twin in TWINS if twin.name.startswith(kind)
             and not twin.name.endswith("crlf.sh")]  # which no shell reads: LD534  # fmt: skip
    for twin in twins if ALL else twins[1:2]:
        place = (FOLDER / twin.name).parent / (twin.given or Path(twin.name).name)
        diagnosis = lora_doctor.check(place, worker=worker, depth="tiny")
        assert diagnosis.verdict == "healthy", (twin.id, diagnosis.findings)


@pytest.mark.parametrize(
    ("name", "old", "new", "rule"),
    [
        ("trl/01_plain.yaml", b"use_peft: true\n", b"use_peft: true\nzzz_notes: mine\n", "LD530"),
        ("ms_swift/03_regex.sh", b"--target_regex", b"--target_modules x --target_regex", "LD531"),
    ],
    ids=["key-of-nobody", "overridden"],
)
@pytest.mark.slow
def test_a_fix_that_no_run_shows_is_not_called_executed(
    name: str, old: bytes, new: bytes, rule: str, tmp_path: Path, worker: Worker
) -> None:
    """The recipe is the same with and without the entry, so that the run of the one proves nothing
    of the other: the fix is taken, and is said to be read."""
    given = tmp_path / Path(name).name
    data = (FOLDER / name).read_bytes()
    assert data.count(old) == 1
    given.write_bytes(data.replace(old, new))
    diagnosis = lora_doctor.fix(given, worker=worker)
    (fix,) = (fix for one in diagnosis.findings if one.rule == rule for fix in one.fixes)
    assert (fix.safety, fix.executed.outcome) == ("unproven", "removed")
    assert fix.executed.depth == "static"
    assert [item.rule for item in diagnosis.applied] == [rule]
    assert rule not in {finding.rule for finding in diagnosis.remaining or ()}
    text = render(diagnosis, "full", color=False, width=100)
    assert "read again, not run" in text and "entry:" not in text


@pytest.mark.parametrize("name", ["trl_without_use_peft", "llamafactory_packing",
                                  "axolotl_qlora_without_4bit", "deepspeed/contradicts",
                                  "deepspeed/zero3_8bit"])  # fmt: skip
def test_what_a_framework_would_do_is_inferred_and_said_so(name: str) -> None:
    """Nothing of the framework is run, so the wording leaves it open."""
    diagnosis = lora_doctor.check(FOLDER / f"{name}.yaml", depth="static")
    found = [one for one in diagnosis.findings
             if one.rule in ("LD531", "LD532", "LD533", "LD711", "LD712")]  # fmt: skip
    assert found
    assert all(one.proof.kind == "inferred" and " may " in one.message for one in found)
