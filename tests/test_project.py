"""A project's configuration, as a team keeps it beside its code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lora_doctor.cli.main import main
from lora_doctor.sandbox import process
from tests.cli import completed as run

SET_UPS = """
[set-ups.llama]
model = "arch:llama"
target-modules = ["q_proj", "v_proj"]

[set-ups.gpt2]
model = "arch:gpt2"
target-modules = ["q_proj"]
"""


def configure(folder: Path, text: str, name: str = "lora-doctor.toml") -> None:
    (folder / name).write_text(text, "utf-8")


def test_all_set_ups_in_one_invocation(tmp_path: Path) -> None:
    """Each by the configuration of the nearest folder above; a summary at the end, the worst exit
    code, and a file for each where a format holds one result, else one for all."""
    configure(tmp_path, 'depth = "meta"\n' + SET_UPS)
    inner = tmp_path / "scripts"
    inner.mkdir()
    # Files of the command line are those of the folder in which it is typed.
    joint = {"sarif": "r.sarif", "gitlab": "r.gitlab", "junit": "r.xml", "concise": "r.txt"}
    outputs = [f"--output={name}={file}" for name, file in (("json", "r.json"), *joint.items())]
    done = run("check", "--output-format", "concise", *outputs, cwd=inner)
    assert done.returncode == 1, done.stderr
    assert "LD201" in done.stdout
    written = {name: (inner / file).read_text() for name, file in joint.items()}
    for file in joint.values():
        (inner / file).unlink()
    runs = json.loads(written["sarif"])["runs"]
    # GitHub refuses two runs of one category: here both are of a model alone.
    categories = [run["automationDetails"]["id"] for run in runs]
    assert categories == ["lora-doctor/llama/", "lora-doctor/gpt2/"]
    assert [[one["ruleId"] for one in run["results"]] for run in runs] == [[], ["LD201"]]
    (issue,) = [one for one in json.loads(written["gitlab"]) if one["check_name"] == "LD201"]
    assert issue["description"].startswith("gpt2: ")
    suites = [suite.get("name") for suite in ElementTree.fromstring(written["junit"])]
    assert suites == ["llama: arch:llama", "gpt2: arch:gpt2"]
    assert written["concise"] == done.stdout
    told = done.stderr.splitlines()
    assert told[-2:] == ["lora-doctor: llama: nothing found", "lora-doctor: gpt2: findings"]
    stored = {file.name: json.loads(file.read_text()) for file in inner.iterdir()}
    assert sorted(stored) == ["r.gpt2.json", "r.llama.json"]
    assert stored["r.llama.json"]["depth"] == stored["r.gpt2.json"]["depth"] == "meta"
    # What was written for each is the baseline of each.
    again = run("check", "--output-format", "concise", "--baseline", "r.json", cwd=inner)
    assert again.returncode == 0, again.stderr
    assert "gpt2: nothing found, 1 known" in again.stderr
    assert stored["r.llama.json"]["recipe"]["values"]["target_modules"] == ["q_proj", "v_proj"]


LINEAR = """
import torch

def first():
    torch.nn.Linear.left_behind = True
    return torch.nn.Sequential(torch.nn.Linear(4, 4)), {"input": torch.ones(2, 4)}

def second():
    assert not hasattr(torch.nn.Linear, "left_behind")
    return torch.nn.Sequential(torch.nn.Linear(4, 4)), {"input": torch.ones(2, 4)}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each task makes its own imports")
def test_set_ups_share_the_imports_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second set-up starts at once, and what the first did to torch is not there any more."""
    (tmp_path / "mine.py").write_text(LINEAR, "utf-8")
    configure(
        tmp_path,
        'depth = "meta"\nselect = ["LD201"]\n'
        '[set-ups.a]\nmodel = "mine:first"\ntarget-modules = ["0"]\n'
        '[set-ups.b]\nmodel = "mine:second"\ntarget-modules = ["none"]\n',
    )
    start, started = process.start_python, []

    def counted(*arguments: Any) -> Any:
        started.append(start(*arguments))
        return started[-1]

    monkeypatch.setattr(process, "start_python", counted)
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--output-format", "concise"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-2:] == ["lora-doctor: a: nothing found", "lora-doctor: b: findings"]
    (only,) = started
    assert only.wait(10) == 0, "it ends with the last set-up"


def test_what_is_ignored_is_shown_with_its_reason_and_fails_nothing(tmp_path: Path) -> None:
    configure(
        tmp_path,
        '[tool.lora-doctor]\ndepth = "meta"\n'
        '[tool.lora-doctor.ignore]\nLD201 = "a head without layers is meant"\n',
        "pyproject.toml",
    )
    done = run("check", "arch:gpt2", "--target-modules", "q_proj", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "LD201" in done.stdout and "ignored: a head without layers is meant" in done.stdout
    unused = run("check", "arch:gpt2", "--target-modules", "c_attn", cwd=tmp_path)
    assert "pyproject.toml: ignore.LD201 ignores nothing" in unused.stdout


@pytest.mark.slow
def test_all_set_ups_are_fixed_where_they_are_written(tmp_path: Path) -> None:
    """Each in its own file, with its page and its prescription in a folder of its own; a set-up
    that stands in the configuration gets a recipe, which is named."""
    (tmp_path / "sft.yaml").write_text("target_modules: [q_proj, v_prj]  # both\n", "utf-8")
    configure(
        tmp_path,
        # Of another command: `fix` runs something at least.
        'depth = "meta"\n'
        '[set-ups.sft]\nmodel = "arch:llama"\nrecipe = "sft.yaml"\n'
        '[set-ups.here]\nmodel = "arch:gpt2"\ntarget-modules = ["q_proj"]\n',
    )
    (tmp_path / "below").mkdir()
    shown = run("fix", "--diff", cwd=tmp_path / "below")
    assert shown.returncode == 1, shown.stderr
    assert "+target_modules: [q_proj, v_proj]  # both" in shown.stdout
    done = run("fix", "--apply", "--output-dir", "made", cwd=tmp_path / "below")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sft.yaml").read_text() == "target_modules: [q_proj, v_proj]  # both\n"
    assert sorted(file.name for file in (tmp_path / "below/made/sft").iterdir()) == [
        "lora-doctor.html", "lora-doctor.prescription.json",
    ]  # fmt: skip
    sft, here = done.stderr.splitlines()[-2:]
    assert sft == "lora-doctor: sft: fixed in sft.yaml"
    assert "made/here/lora-doctor.recipe.yaml; name it as its recipe in lora-doctor.toml" in here
    again = run("fix", "--apply", "--output-dir", "again", "--select", "LD202", cwd=tmp_path)
    assert "sft: nothing found" in again.stderr and not (tmp_path / "again").exists()


@pytest.mark.slow
def test_fix_leaves_what_the_project_ignores(tmp_path: Path) -> None:
    """Its reason says that it is meant so; what else is found is fixed."""
    configure(tmp_path, '[ignore]\nLD202 = "the same list serves two architectures"\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("target_modules: [c_attn, query_key_value]\nrank_pattern: {nowhere: 4}\n")
    done = run("fix", "arch:gpt2", "--recipe", str(recipe), "--apply", "--output", "json=r.json",
               cwd=tmp_path)  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert "LD202" in [one["rule"] for one in report["findings"]], done.stdout
    assert [one["rule"] for one in report["applied"]] == ["LD213"]
    assert "query_key_value" in recipe.read_text() and "nowhere" not in recipe.read_text()


def test_the_command_line_wins_over_the_environment_over_the_file(tmp_path: Path) -> None:
    configure(tmp_path, 'depth = "meta"\nfail-on = "never"\n[severity]\nLD201 = "warning"\n')
    check = ("check", "arch:gpt2", "--target-modules", "q_proj", "--output-format", "json")
    by_file = run(*check, cwd=tmp_path)
    assert by_file.returncode == 0, by_file.stderr
    (finding,) = json.loads(by_file.stdout)["findings"]
    assert finding["severity"] == "warning"
    by_variable = run(*check, cwd=tmp_path, LORA_DOCTOR_CHECK_FAIL_ON="warning")
    assert by_variable.returncode == 1
    by_option = run(*check, "--fail-on", "error", cwd=tmp_path, LORA_DOCTOR_CHECK_FAIL_ON="warning")
    assert by_option.returncode == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dept = 1", "unknown key 'dept'; did you mean 'depth'?"),
        ('depth = "deep"', "'deep' is not one of"),
        ("depth = ", "is not TOML"),
        ('ignore = ["LD208"]', "ignore is not a table of codes"),
        ('[ignore]\nLD208 = ""', "ignore.LD208: give the reason"),
        ('[severity]\nLD208 = "fatal"', "severity.LD208: expected one of error, warning, info"),
        ('[set-ups.a]\nrecipe = "r.yaml"', "set-ups.a needs either model"),
        ('[set-ups.a]\nmodle = "arch:llama"', "did you mean 'model'?"),
        ('[set-ups.a]\nmodel = "arch:llama"\nalpa = 1', "unknown key 'set-ups.a.alpa'"),
        ("trust-remote-code = true", "'trust-remote-code' can be given on the command line only"),
        ('rules = "mine"', "'rules' can be given on the command line only"),
        ('[set-ups.a]\ncommand = "python \'x"', "set-ups.a.command: No closing quotation"),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    configure(tmp_path, text)
    done = run("check", "arch:llama", "--output-format", "concise", cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_a_set_up_that_cannot_be_answered_does_not_hide_the_others(tmp_path: Path) -> None:
    configure(
        tmp_path,
        'depth = "meta"\n[set-ups.lost]\nmodel = "no/such/folder/at.all"\n'
        '[set-ups.llama]\nmodel = "arch:llama"\n',
    )
    done = run("check", "--output-format", "sarif", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2, done.stderr
    lost, answered = json.loads(done.stdout)["runs"]
    assert answered["automationDetails"] == {"id": "lora-doctor/llama/"}
    (invocation,) = lost["invocations"]
    assert not invocation["executionSuccessful"] and answered["invocations"]
    told = invocation["toolExecutionNotifications"][0]["message"]["text"]
    assert "'no/such/folder/at.all': not a folder" in told
    refused = run("check", "--output-format", "html", cwd=tmp_path)
    assert refused.returncode == 2 and "--output html=FILE" in refused.stderr
    assert "lost: undetermined" in done.stderr and "llama: nothing found" in done.stderr


def test_without_set_ups_a_model_is_asked_for(tmp_path: Path) -> None:
    done = run("check", cwd=tmp_path)
    assert done.returncode == 2 and "MODEL is missing" in done.stderr
    configure(tmp_path, SET_UPS)
    one = run("check", "--output-format", "html", cwd=tmp_path)
    assert one.returncode == 2 and "--output html=FILE" in one.stderr and not one.stdout


def test_paths_of_the_configuration_are_read_from_its_folder(tmp_path: Path) -> None:
    """From a folder below, as in a hook that does not run at the top; and of a training command
    nothing is run at depth static, nor is data read, which no static check can judge."""
    ran = tmp_path / "ran"
    (tmp_path / "train.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('model')\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "sft.yaml").write_text("r: 8\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    configure(
        tmp_path,
        'data = "rows.jsonl"\n[ignore]\nLD999 = "gone"\nACME1 = "of a company"\n'
        '[severity]\nLD998 = "info"\n[set-ups.model]\nmodel = "model"\nrecipe = "sft.yaml"\n'
        '[set-ups.run]\ncommand = "python train.py --lr 1"\n'
        '[set-ups.unread]\ncommand = "make train"\n',
    )
    inner = tmp_path / "scripts"
    inner.mkdir()
    done = run("check", "--depth", "static", "--output", "json=r.json", cwd=inner)
    told = done.stderr.splitlines()
    assert told[-3:-1] == ["lora-doctor: model: nothing found", "lora-doctor: run: nothing found"]
    assert "at depth static the command is not run, and 'make train': names no file" in done.stderr
    assert done.returncode == 2
    unknown = [line for line in told if "there is no such rule" in line]
    assert [line.split(": ")[3] for line in unknown] == ["ignore.LD999", "severity.LD998"]
    assert not ran.exists()
    assert sorted(file.name for file in inner.iterdir()) == ["r.model.json", "r.run.json"]
