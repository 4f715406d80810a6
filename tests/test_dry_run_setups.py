"""Set-ups in the styles that people use (tests/dry_run_setups): each broken one is found, and
about a healthy one nothing is said.

A test run takes the few that need no more than the stacks have. ``LORA_DOCTOR_SETUPS=all`` takes
all that the environment has the packages for: `nox -s dry_run` and `nox -s dry_run_launchers`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests import cli
from tests.dry_run_setups.folders import write_all
from tests.dry_run_setups.setups import Setup
from tests.dry_run_setups.table import SETUPS

_ALL = os.environ.get("LORA_DOCTOR_SETUPS") == "all"
_CHOSEN = [setup for setup in SETUPS if _ALL or setup.sample]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and data of all set-ups."""
    made = tmp_path_factory.mktemp("folders")
    write_all(made)
    return made


@pytest.mark.parametrize("setup", _CHOSEN, ids=[setup.name for setup in _CHOSEN])
def test_a_setup(setup: Setup, folders: Path, tmp_path: Path) -> None:
    if setup.lacking:
        pytest.skip(f"{', '.join(setup.lacking)} is not installed")
    place = tmp_path / "place"
    shutil.copytree(folders, place)
    setup.write(place)
    result = cli.lora_doctor(
        "dry-run", "--output-format", "json", "--", *setup.words, cwd=place, timeout=600
    )
    assert result.out, result.err
    report = json.loads(result.out)
    said = [(finding["rule"], finding["message"]) for finding in report["findings"]]
    loud = [one["rule"] for one in report["findings"] if one["severity"] != "info"]
    assert result.code == (1 if setup.expects else 0), (said, report["undetermined"])
    if setup.expects:
        assert set(setup.expects) <= set(loud), said
    else:
        assert report["verdict"] == "healthy" and not loud, said


def test_the_table_has_what_it_promises() -> None:
    """Sixty and more, half of them broken, every edit in its script, no name twice."""
    broken = [setup for setup in SETUPS if setup.expects]
    assert len(SETUPS) >= 60 and len(broken) >= 30 and len(SETUPS) - len(broken) >= 30
    assert len({setup.name for setup in SETUPS}) == len(SETUPS)


@pytest.mark.parametrize("setup", SETUPS, ids=[setup.name for setup in SETUPS])
def test_a_setup_can_be_written(setup: Setup, tmp_path: Path) -> None:
    setup.write(tmp_path)
    assert list(tmp_path.iterdir())
