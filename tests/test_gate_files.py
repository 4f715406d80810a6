"""The hook, the action and the examples of docs/gate.md, run as a team's machines would."""

from __future__ import annotations

import json
import os
import re
import shutil
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
    # It needs the same words; what it writes is seen in tests/test_project.py.
    help_ = run(f"{hooks['lora-doctor-fix']['entry']} --help", work, machine)
    assert help_.returncode == 0 and "--apply" in help_.stdout, help_.stderr
    assert set(re.findall(r"id: ([\w-]+)", GATE)) <= set(hooks)


def test_the_hooks_run_for_every_kind_of_file_that_a_set_up_refers_to() -> None:
    changed = ("train.py", "sft.yaml", "rows.jsonl", "requirements.txt", "uv.lock", "Dockerfile",
               "docker/Dockerfile", "chat.jinja", "run.sh", "nb/train.ipynb")  # fmt: skip
    for hook in yaml(ROOT / ".pre-commit-hooks.yaml"):
        assert all(re.search(hook["files"], name) for name in changed), hook["id"]
        assert not any(re.search(hook["files"], name) for name in ("README.md", "logo.png"))


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


# --- before a job starts --------------------------------------------------------------------------


@pytest.fixture
def cluster(machine: dict[str, str], work: Path) -> dict[str, str]:
    """Stand-ins that write down how they were started; lora-doctor ends as ``$FOUND`` says."""
    bin = Path(machine["PATH"].partition(os.pathsep)[0])
    for name, end in (("lora-doctor", "exit ${FOUND:-0}"), ("python", "exit 0"),
                      ("pip", "exit 0"), ("srun", '"$@"')):  # fmt: skip
        program = bin / name
        program.unlink(missing_ok=True)
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> "$LOG"\n{end}\n')
        program.chmod(0o755)
    (work / "configs").mkdir()
    for file in ("train.py", "configs/sft.yaml"):
        (work / file).touch()
    return {**machine, "LOG": str(work / "log"), "SM_OUTPUT_DATA_DIR": "out"}


def recipe(heading: str, language: str) -> str:
    """The first example of this language behind a word of the last section."""
    section = GATE.partition("## Before a job starts")[2].partition(f"\n{heading}")[2]
    block = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert block, heading
    return block[1]


def container() -> str:
    spec = YAML(typ="safe").load(recipe("Kubeflow", "yaml"))["spec"]["pytorchReplicaSpecs"]
    (only,) = spec["Master"]["template"]["spec"]["containers"]
    assert only["command"] == ["bash", "-c"]
    (script,) = only["args"]
    return str(script)


SCRIPTS = {
    "Slurm": lambda: recipe("Slurm", "bash"),
    "Kubeflow": container,
    "SageMaker": lambda: recipe("SageMaker", "bash"),
}


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_a_start_script_trains_only_what_passed(
    name: str, work: Path, cluster: dict[str, str]
) -> None:
    script = work / "start.sh"
    script.write_text(SCRIPTS[name]())
    assert run(f"bash -n {script}", work, cluster).returncode == 0
    arguments = "--config configs/sft.yaml" if name == "SageMaker" else ""
    log = Path(cluster["LOG"])
    found = run(f"bash {script} {arguments}", work, {**cluster, "FOUND": "1"})
    assert found.returncode == 1, found.stderr
    command = "python train.py --config configs/sft.yaml"
    asked = log.read_text().splitlines()
    assert asked[-1].startswith("lora-doctor dry-run") and asked[-1].endswith(f"-- {command}")
    assert command not in asked
    passed = run(f"bash {script} {arguments}", work, cluster)
    assert passed.returncode == 0, passed.stderr
    assert log.read_text().splitlines()[-1] == command


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_asks_once_and_again_when_a_file_has_changed(
    work: Path, cluster: dict[str, str]
) -> None:
    (work / "Makefile").write_text(recipe("Make", "make"))
    log = Path(cluster["LOG"])

    def made(**variables: str) -> tuple[int, list[str]]:
        log.write_text("")
        done = run("make train", work, {**cluster, **variables})
        return done.returncode, [line.split()[0] for line in log.read_text().splitlines()]

    assert made(FOUND="1") == (2, ["lora-doctor"])
    assert made() == (0, ["lora-doctor", "python"])
    assert made() == (0, ["python"])
    later = (work / ".checked").stat().st_mtime + 10
    os.utime(work / "configs" / "sft.yaml", (later, later))
    assert made(FOUND="2")[1] == ["lora-doctor"]


def test_the_gitlab_job_writes_the_report_that_it_declares() -> None:
    job = YAML(typ="safe").load(re.search(r"## GitLab\n\n```yaml\n(.*?)```", GATE, re.DOTALL)[1])  # type: ignore[index]
    *_, check = job["lora-doctor"]["script"]
    report = job["lora-doctor"]["artifacts"]["reports"]["codequality"]
    assert check == f"lora-doctor check --strict --output gitlab={report}"
    assert job["lora-doctor"]["artifacts"]["when"] == "always"


def test_the_action_and_the_hooks_are_strict() -> None:
    hooks = yaml(ROOT / ".pre-commit-hooks.yaml")
    (step,) = yaml(ROOT / "action.yml")["runs"]["steps"]
    assert all(" --strict " in one for one in (step["run"], *(hook["entry"] for hook in hooks)))


def test_every_format_is_in_the_docs() -> None:
    from lora_doctor.results.formats import find_formats

    table = GATE.partition("| `--output-format`")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", table)) >= set(find_formats())
