"""The census: rows made by running, kept as they come, rendered so that anyone can search them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_doctor.census.row import COLUMNS
from lora_doctor.static.installed.environment import known_architectures
from tests import cli

slow = pytest.mark.slow
#: On every stack: a decoder, speech (twice: also its decoder alone), text to text.
NAMES = ("gpt2", "whisper", "t5")


def run(folder: Path, *names: str, keep: Path | None = None) -> tuple[cli.Result, dict[str, Any]]:
    select = [word for name in names for word in ("--select", name)]
    extra = ["--keep-models", str(keep)] if keep else []
    result = cli.lora_doctor("census", *select, "--jobs", "1", "-o", folder, *extra)
    assert result.code == 0, result
    table: dict[str, Any] = json.loads((folder / "census.json").read_text())
    return result, table


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, cli.Result, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("census")
    return folder, *run(folder / "out", *NAMES, keep=folder / "models")


@slow
def test_every_cell_says_yes_or_why_not(taken: tuple[Path, cli.Result, dict[str, Any]]) -> None:
    _, result, table = taken
    assert {row["model_type"] for row in table["rows"]} == set(NAMES)
    for row in table["rows"]:
        assert list(row["cells"]) == list(COLUMNS)
        assert all(cell["status"] == "yes" or cell["reason"] for cell in row["cells"].values())
        assert row["cells"]["recipe"]["status"] == "yes", row
        assert row["recipe"]["target_modules"]
    assert f"{len(table['rows']):>5}  pairs" in result.out
    assert "rows, " in result.err and " left: " in result.err


@slow
def test_what_is_called_trained_trains_with_transformers_and_peft_alone(
    taken: tuple[Path, cli.Result, dict[str, Any]],
) -> None:
    """No false "trains": a script that knows nothing of us sees the loss fall."""
    folder, _, table = taken
    script = cli.ROOT / "tests" / "trains_independently.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "out/census.json"), str(folder / "models")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{len(table['rows'])} of {len(table['rows'])} rows" in done.stdout


@slow
def test_a_run_that_was_broken_off_goes_on_and_ends_the_same(
    taken: tuple[Path, cli.Result, dict[str, Any]], tmp_path: Path
) -> None:
    """Half a row and the rows after it are made again, the others are not."""
    folder, _, _ = taken
    lines = (folder / "out/rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:2], lines[2][:40]]))
    result, _ = run(tmp_path, *NAMES)
    assert f"of {len(lines) - 2} rows" in result.err
    again = (tmp_path / "census.json").read_bytes()
    assert again == (folder / "out/census.json").read_bytes()


@slow
def test_a_process_that_dies_costs_its_row_and_no_other(tmp_path: Path) -> None:
    """The kernel ends processes when memory is short: here the first that tries a model."""
    select = [word for name in NAMES for word in ("--select", name)]
    census = subprocess.Popen(
        [sys.executable, "-m", "lora_doctor", "census", *select, "--jobs", "1", "-o", tmp_path],
        cwd=cli.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    killed = kill_a_task(psutil.Process(census.pid), begun=tmp_path / "rows.jsonl")
    _, told = census.communicate(timeout=300)
    assert census.returncode == 0 and killed, told
    rows = json.loads((tmp_path / "census.json").read_text())["rows"]
    lost = [row for row in rows if row["cells"]["recipe"]["status"] != "yes"]
    assert len(rows) > 2 and len(lost) == 1, [row["cells"] for row in lost]
    assert "crash" in json.dumps(lost[0]["cells"])


def kill_a_task(census: psutil.Process, begun: Path) -> bool:
    """Kill the first process that tries a model; False when none is seen."""
    end = time.monotonic() + 120
    while time.monotonic() < end and census.is_running():
        servers = census.children() if begun.exists() else []
        for task in [task for server in servers for task in server.children()]:
            task.kill()
            return True
        time.sleep(0.02)
    return False


@slow
def test_a_ray_cluster_of_two_workers_gives_the_same_table(
    taken: tuple[Path, cli.Result, dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="pip install 'lora-doctor[ray]'")
    folder, _, _ = taken
    select = [word for name in NAMES for word in ("--select", name)]
    result = cli.lora_doctor(
        "census", *select, "--engine", "ray", "--jobs", "2", "-o", tmp_path / "out"
    )
    assert result.code == 0, result
    again = (tmp_path / "out" / "census.json").read_bytes()
    assert again == (folder / "out/census.json").read_bytes()


@slow
def test_other_tasks_are_rows_where_their_auto_classes_are_asked_for(tmp_path: Path) -> None:
    """Classifiers are not generation: they have no row without ``--class``."""
    result = cli.lora_doctor(
        "census", "--class", "AutoModelFor*Classification", "--select", "distilbert",
        "--select", "vit", "--jobs", "1", "-o", tmp_path,
    )  # fmt: skip
    assert result.code == 0, result
    rows = json.loads((tmp_path / "census.json").read_text())["rows"]
    assert {(row["auto_class"], row["model_type"]) for row in rows} == {
        ("AutoModelForImageClassification", "vit"),
        ("AutoModelForSequenceClassification", "distilbert"),
        ("AutoModelForTokenClassification", "distilbert"),
    }
    assert all(row["cells"]["recipe"]["status"] == "yes" for row in rows), rows
    assert "image classification" in (tmp_path / "census.html").read_text()
    # What a row cost is kept beside the table: its own work, without the imports
    costs = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()[1:]]
    assert all(row["processor_seconds"] > 0 and row["peak_memory"] > 2**20 for row in costs)


def test_a_class_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    result = cli.lora_doctor("census", "--class", "AutoModelForNothing", "-o", folder)
    assert result.code == 2 and "AutoModelForNothing" in result.err, result
    assert not folder.exists(), "nothing is left behind of a question that had no answer"
    assert "Traceback" not in result.err


def test_an_unknown_name_and_a_foreign_folder_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"versions": {"transformers": "1"}}\n')
    result = cli.lora_doctor("census", "--select", "no-such-model", "-o", tmp_path / "new")
    assert result.code == 2 and "no-such-model" in result.err and "Traceback" not in result.err
    result = cli.lora_doctor("census", "--select", "gpt2", "-o", tmp_path)
    assert result.code == 2 and "other versions" in result.err, result


def test_known_names_cover_the_examples() -> None:
    """The names above must exist on the oldest stack, else the tests above prove nothing."""
    assert set(NAMES) <= set(known_architectures() or ())
