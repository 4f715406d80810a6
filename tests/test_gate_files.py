"""The hook, the action and the examples of docs/gate.md, run as a team's machines would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
GATE = (ROOT / "docs" / "gate.md").read_text("utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine on which lora-doctor is installed."""
    bin = tmp_path / "bin"
    bin.mkdir()
    program = bin / "lora-doctor"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lora_doctor "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def configure(folder: Path, targets: str) -> None:
    text = f'[set-ups.sft]\nmodel = "arch:llama"\ndepth = "meta"\ntarget-modules = "{targets}"\n'
    (folder / "lora-doctor.toml").write_text(text)


def run(command: str, cwd: Path, machine: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=machine, capture_output=True, text=True, check=False
    )


def yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def test_the_hooks_fail_what_fails_only(work: Path, machine: dict[str, str]) -> None:
    hooks = {hook["id"]: hook for hook in yaml(ROOT / ".pre-commit-hooks.yaml")}
    entry = hooks["lora-doctor"]["entry"].replace(" --strict", "")  # the hub is not reached here
    configure(work, "q_proj,v_proj")
    good = run(entry, work, machine)
    assert good.returncode == 0, good.stderr
    configure(work, "c_attn")
    bad = run(entry, work, machine)
    assert bad.returncode == 1 and "LD201" in bad.stdout, bad.stderr
    assert set(re.findall(r"id: ([\w-]+)", GATE)) <= set(hooks)


def test_the_action_annotates_and_writes_sarif(work: Path, machine: dict[str, str]) -> None:
    action = yaml(ROOT / "action.yml")
    (step,) = action["runs"]["steps"]
    given = {
        "ARGUMENTS": "arch:llama --target-modules c_attn --depth meta",
        "SARIF_FILE": action["inputs"]["sarif-file"]["default"],
    }
    assert set(given) == set(step["env"])
    done = run(step["run"], work, {**machine, **given})
    assert done.returncode == 1 and done.stdout.startswith("::error title=lora-doctor"), done.stderr
    results = json.loads((work / "lora-doctor.sarif").read_text())["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["LD201"]
    harmless = {**machine, **given, "ARGUMENTS": "arch:llama --depth meta; touch ran $(touch ran)"}
    assert run(step["run"], work, harmless).returncode == 2
    assert not (work / "ran").exists()


def test_the_configuration_of_the_docs_is_read(work: Path, machine: dict[str, str]) -> None:
    block = re.search(r"```toml\n(.*?)```", GATE, re.DOTALL)
    assert block
    (work / "pyproject.toml").write_text(block[1])
    done = run("lora-doctor check arch:llama --depth meta --output-format concise", work, machine)
    assert done.returncode == 0, done.stderr


def test_every_format_is_in_the_docs() -> None:
    from lora_doctor.results.formats import find_formats

    table = GATE.partition("| `--output-format`")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", table)) >= set(find_formats())
