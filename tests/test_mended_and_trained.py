"""Broken set-ups through ``fix --apply -- COMMAND``: each is mended in its own file, and then its
own command trains from that: the frameworks themselves, and scripts as they are.

``nox -s dry_run dry_run_launchers`` have the packages; no other test run takes these.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests import cli
from tests.dry_run_setups.folders import write_all
from tests.dry_run_setups.table import SETUPS
from tests.set_up_files import TWINS, Twin
from tests.set_up_runs import MODULES, NOT_HERE, broken_here

if os.environ.get("LORA_DOCTOR_SETUPS") != "all":
    pytest.skip("a dry run each: nox -s dry_run dry_run_launchers", allow_module_level=True)

#: Broken scripts of the table with a mistake that stands in them, and has a fix.
SCRIPTS = (
    "SFT in 4 bits: a module name misspelled",
    "DPO: a target of another architecture",
    "KTO: a target of another architecture",
    "reward model: the task type of another class",
    "text classification: a scaling out of scale",
    "text classification: a new head that nothing saves",
    "masked language model: names of another architecture",
    "image classification: checkpointing without gradients at its inputs",
    "image classification: a new head that nothing saves",
    "T5: names of another architecture",
    "Whisper: a target that is not there",
    "LLaVA: adapters in the vision tower",
    "Lightning: a target of another architecture",
    "dataclasses: rank-stabilized and scaled once more",
    "sentence-transformers: a target that is not there",
    "an adapter trained on: loaded for inference",
    "add_adapter: a target that is not there",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and data of all set-ups."""
    made = tmp_path_factory.mktemp("folders")
    write_all(made)
    return made


def mend(place: Path, command: list[str], *options: str) -> cli.Result:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return cli.lora_doctor(
        "fix", "--apply", *options, "--output-format", "concise", "--", *command,
        cwd=place, env={"PATH": beside}, timeout=1200,
    )  # fmt: skip


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.id)
def test_a_framework_trains_from_its_mended_set_up(
    twin: Twin, folders: Path, tmp_path: Path
) -> None:
    framework = twin.name.partition("/")[0]
    if importlib.util.find_spec(MODULES[framework]) is None:
        pytest.skip(f"{framework} is not installed")
    if twin.id in NOT_HERE:
        pytest.skip(NOT_HERE[twin.id])
    place = tmp_path / "place"
    command = broken_here(twin, place, folders)
    file = place / Path(twin.name).name
    broken = file.read_bytes()
    result = mend(place, command, *(("--unsafe-fixes",) if twin.unsafe else ()))
    assert "dry run of the command: healthy" in result.err, result.out + result.err
    assert result.code == 0 and twin.rule in result.out
    assert file.read_bytes() != broken == file.with_name(f"{file.name}.bak").read_bytes()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_mended_script_trains(name: str, folders: Path, tmp_path: Path) -> None:
    setup = next(one for one in SETUPS if one.name == name)
    if setup.lacking:
        pytest.skip(f"{', '.join(setup.lacking)} is not installed")
    place = tmp_path / "place"
    shutil.copytree(folders, place)
    setup.write(place)
    script = place / setup.script
    broken = script.read_text(encoding="utf-8")
    result = mend(place, list(setup.words), "--unsafe-fixes")
    assert "dry run of the command: healthy" in result.err, result.out + result.err
    assert result.code == 0 and script.read_text(encoding="utf-8") != broken
