"""`lora-doctor dry-run`: scripts as people write them, run as they are, with the model shrunk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.results.dry_run import NOT_SHOWN
from tests import cli
from tests.chat_models import write_model

SCRIPTS = Path(__file__).parent / "dry_runs"
#: Llama 2 of 7 billion parameters: a config is all that there is of it.
LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of a user's: a model without weights, and the scripts."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_7B))
    for script in SCRIPTS.glob("*.py"):
        shutil.copy(script, tmp_path)
    return tmp_path


def dry_run(place: Path, *words: str, code: int, options: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON report of a dry run that ends with this code; nothing is left behind."""
    temporary = place.parent / f"{place.name}-temporary"
    temporary.mkdir(exist_ok=True)
    before = sorted(place.rglob("*"))
    result = cli.lora_doctor(
        "dry-run", "--output-format", "json", *options, "--", *words,
        cwd=place, env={"TMPDIR": str(temporary)},
    )  # fmt: skip
    assert result.code == code, result.out + result.err
    assert sorted(place.rglob("*")) == before, "something was written where the user's outputs are"
    assert not list(temporary.iterdir()), "something was left behind"
    found: dict[str, Any] = json.loads(result.out)
    return found


def rules(report: dict[str, Any]) -> list[str]:
    return [finding["rule"] for finding in report["findings"]]


# --- scripts --------------------------------------------------------------------------------------


def test_a_healthy_trainer_script_is_healthy_and_comes_to_its_end(place: Path) -> None:
    """7 billion parameters, 5000 rows, bf16 and "auto": on a laptop, without weights."""
    report = dry_run(place, sys.executable, "trainer_peft.py", "--learning_rate", "1e-4", code=0)
    assert report["verdict"] == "healthy"
    run = report["dry_run"]
    assert (run["trained_by"], run["steps"], run["planned_steps"]) == ("Trainer", 3, 1250)
    assert run["error"] is None, "saving, merging and loading again work, too"
    assert {Path(path).name for path in run["redirected"]} >= {"out", "merged", "adapter_config"}
    assert not (place / "adapter_config").exists()
    values, origins = report["recipe"]["values"], run["origins"]
    assert (values["r"], values["learning_rate"], values["dtype"]) == (16, 1e-4, "bfloat16")
    assert origins["learning_rate"] == "command line"
    lines = (SCRIPTS / "trainer_peft.py").read_text().splitlines()
    config = next(n for n, line in enumerate(lines, 1) if "config = LoraConfig(" in line)
    assert origins["r"] == f"trainer_peft.py:{config}"
    assert "bias" in values and "bias" not in origins, "nobody set it: PEFT's default"
    assert report["model"]["parameters"] > 6e9, "what is reported is the class at full size"
    assert report["verification"]["before"]["batches"][0]["inputs"]["input_ids"] == [4, 16]
    assert NOT_SHOWN in [note["text"] for note in report["notes"]]
    assert report["supervision"]["share"] > 0.9 and report["supervision"]["rows_total"] == 5000


def test_a_name_that_matches_nothing_is_found_and_its_line_told(place: Path) -> None:
    report = dry_run(
        place, sys.executable, "trainer_peft.py", "--target", "query_key_value", "v_proj", code=1
    )
    [finding] = report["findings"]
    assert finding["rule"] == "LD202"
    told = {measure["what"]: measure["value"] for measure in finding["evidence"]}
    assert str(told["target_modules is set"]).startswith("trainer_peft.py:")
    assert report["dry_run"]["steps"] == 3, "the run itself goes through: nothing tells the user"


def test_labels_that_are_all_masked_are_seen_in_the_batches_of_the_run(place: Path) -> None:
    """Loss NaN or 0, and a run that "succeeds"; rows of the user stay out of the JSON."""
    script = place / "trainer_peft.py"
    script.write_text(script.read_text().replace('"labels": ids}', '"labels": [-100] * 16}'))
    report = dry_run(place, sys.executable, "trainer_peft.py", code=1)
    assert rules(report) == ["LD901"]
    found = report["supervision"]
    assert found["executed"] and found["supervised_tokens"] == 0 and found["rows_seen"] >= 4
    assert report["findings"][0]["proof"]["kind"] == "executed"


def test_a_padding_token_that_ends_answers_is_seen_in_the_batches_of_the_run(
    place: Path,
) -> None:
    """`pad_token = eos_token` in the script, and the collator of transformers."""
    write_model(place / "chat", template="chatml")
    tokenizer = 'AutoTokenizer.from_pretrained("chat")'
    script = (SCRIPTS / "trainer_peft.py").read_text().replace('"model", torch', '"chat", torch')
    collator = "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
    (place / "pads.py").write_text(
        script.replace("data_collator=default_data_collator", f"data_collator={collator}")
        .replace("    parser = ", f"    tokenizer = {tokenizer}\n    tokenizer.pad_token = "
                 "tokenizer.eos_token\n    parser = ", 1)
        .replace("import AutoModelForCausalLM,", "import AutoModelForCausalLM, AutoTokenizer, "
                 "DataCollatorForLanguageModeling,")
        .replace("% 30000 + 3", "% 400 + 50").replace(', 2]', ', 5]')
        .replace(', "labels": ids', "")
    )  # fmt: skip
    report = dry_run(place, sys.executable, "pads.py", code=1)
    assert rules(report) == ["LD906"]
    assert report["findings"][0]["proof"]["kind"] == "executed"


def test_what_the_trainer_decided_about_its_sets_is_judged(place: Path) -> None:
    """5000 rows in batches of 4 are 1250 steps: a warm-up of 2000 never ends, and the evaluation
    set is a part of the training set."""
    script = place / "trainer_peft.py"
    script.write_text(
        script.read_text()
        .replace("warmup_steps=10", "warmup_steps=2000")
        .replace(
            "        train_dataset=Numbers(),",
            "        train_dataset=Numbers(),\n        eval_dataset=Numbers(),",
        )
    )
    report = dry_run(place, sys.executable, "trainer_peft.py", code=1)
    assert sorted(rules(report)) == ["LD916", "LD917"]
    assert report["supervision"]["plan"]["steps"] == 1250
    assert report["supervision"]["evaluation"]["rows"] == 5000


def test_a_label_beyond_the_vocabulary_is_one_finding_at_the_users_line(place: Path) -> None:
    script = place / "trainer_peft.py"
    script.write_text(script.read_text().replace('"labels": ids}', '"labels": [40000] * 16}'))
    report = dry_run(place, sys.executable, "trainer_peft.py", code=1)
    assert rules(report) == ["LD914"]
    finding = report["findings"][0]
    lines = (SCRIPTS / "trainer_peft.py").read_text().splitlines()
    call = next(n for n, line in enumerate(lines, 1) if "trainer.train()" in line)
    assert finding["location"] == {"kind": "file", "path": "trainer_peft.py", "line": call}


def test_a_loop_whose_optimizer_never_sees_the_adapters(place: Path) -> None:
    """No Trainer, and "cuda" in the code: optimizer steps are what all loops share."""
    report = dry_run(place, sys.executable, "bare_loop.py", code=1)
    assert "LD503" in rules(report)
    run = report["dry_run"]
    assert run["trained_by"] == "a loop" and run["error"] is None
    assert "out" in {Path(path).name for path in run["redirected"]}


def test_an_exception_of_the_script_is_told_with_the_users_own_line(place: Path) -> None:
    """One failure, one finding: the rule that knows why, at the line of the user's that failed."""
    report = dry_run(place, sys.executable, "wrong_name.py", code=1)
    assert rules(report) == ["LD201"]
    first = report["findings"][0]
    lines = (SCRIPTS / "wrong_name.py").read_text().splitlines()
    call = next(n for n, line in enumerate(lines, 1) if "return get_peft_model" in line)
    assert first["location"] == {"kind": "file", "path": "wrong_name.py", "line": call}
    told = {measure["what"]: str(measure["value"]) for measure in first["evidence"]}
    assert "not found in the base model" in told["exception"]
    assert told["key at fault"] == "target_modules"
    assert told["target_modules is set"] == f"wrong_name.py:{call - 1}"
    assert first["fixes"], "what the rule offers stays"


@pytest.mark.skipif(
    version("transformers").startswith("4."), reason="this transformers accepts both arguments"
)
def test_of_two_findings_of_a_rule_the_one_that_was_raised_is_told(place: Path) -> None:
    """Each is an argument that is not accepted; the script came to the first."""
    script = place / "trainer_peft.py"
    text = script.read_text().replace("bf16=True,", 'evaluation_strategy="no",')
    script.write_text(text.replace("model=model,\n", "model=model,\n        tokenizer=None,\n"))
    report = dry_run(place, sys.executable, "trainer_peft.py", code=1)
    assert rules(report)[:2] == ["LD523", "LD523"]
    told, other = (
        {measure["what"]: str(measure["value"]) for measure in finding["evidence"]}
        for finding in report["findings"][:2]
    )
    assert told["argument"] == "evaluation_strategy" and "evaluation_strategy" in told["exception"]
    assert other["argument"] == "tokenizer" and "exception" not in other


def test_a_failure_that_no_rule_knows_is_told_once(place: Path) -> None:
    """The training contract raises what the script raises: no second finding repeats it."""
    script = place / "trainer_peft.py"
    script.write_text(
        script.read_text().replace(
            "    trainer = Trainer(",
            "    def broken(module, given):\n"
            "        raise RuntimeError('a gate of ours says no to this batch')\n\n"
            "    model.base_model.model.model.layers[0].register_forward_pre_hook(broken)\n"
            "    trainer = Trainer(",
        )
    )
    report = dry_run(place, sys.executable, "trainer_peft.py", code=1)
    assert rules(report) == ["LD002"]
    assert report["findings"][0]["location"]["path"] == "trainer_peft.py"


def test_a_key_that_a_file_of_the_command_sets_is_told_with_its_line(tmp_path: Path) -> None:
    """Frameworks make the config far from any line of the user's: it stands in their YAML."""
    from lora_doctor.dry_run.origins import lines_in_files

    file = tmp_path / "qlora.yaml"
    file.write_text(
        "model_name_or_path: model\nfinetuning_type: lora\nstage: sft\nlora_rank: 8\n"
        "learning_rate: 1.0e-4\n"
    )
    found = lines_in_files(
        ["llamafactory-cli", "train", str(file)], ["r", "learning_rate", "lora_alpha"]
    )
    assert found == {"r": f"{file}:4", "learning_rate": f"{file}:5"}
    assert lines_in_files(["train.py", "--config=nowhere.yaml"], ["r"]) == {}


def test_a_command_that_fails_is_never_healthy(tmp_path: Path) -> None:
    """Also where the rule that says so is left out."""
    (tmp_path / "train.py").write_text("[][0]\n")
    result = cli.lora_doctor("dry-run", "--ignore", "LD002", "train.py", cwd=tmp_path)
    assert result.code == 2
    assert "command fails: IndexError" in " ".join(result.out.split())


# --- nothing runs without a guest -----------------------------------------------------------------


@pytest.fixture
def leaves_a_mark(tmp_path: Path) -> Path:
    """A script that shows whether it was run."""
    path = tmp_path / "mark.py"
    path.write_text("open('mark', 'w').close()\n")
    return path


@pytest.mark.parametrize("option", ["-I", "-E", "-S", "-IB"])
def test_a_python_that_reads_no_environment_is_refused(leaves_a_mark: Path, option: str) -> None:
    result = cli.lora_doctor(
        "dry-run", "--", sys.executable, option, "mark.py", cwd=leaves_a_mark.parent
    )
    assert result.code == 2
    assert "reads no environment" in result.one_line_error
    assert not leaves_a_mark.with_name("mark").exists()


@pytest.mark.skipif(os.name != "posix", reason="env and sh")
@pytest.mark.parametrize(
    "prefix", [["env", "-i"], ["env", "PYTHONPATH=/elsewhere"], ["env", "-u", "PYTHONPATH"]]
)
def test_a_launcher_that_drops_the_environment_is_refused_before_anything_ran(
    leaves_a_mark: Path, prefix: list[str]
) -> None:
    result = cli.lora_doctor(
        "dry-run", "--", *prefix, sys.executable, "mark.py", cwd=leaves_a_mark.parent
    )
    assert result.code == 2
    assert "drops the environment" in result.one_line_error
    assert not leaves_a_mark.with_name("mark").exists()


def test_a_program_that_is_no_python_is_refused(tmp_path: Path) -> None:
    result = cli.lora_doctor("dry-run", "--", shutil.which("ls") or "ls", cwd=tmp_path)
    assert result.code == 2
    assert "is not a Python program" in result.one_line_error


@pytest.mark.skipif(os.name != "posix", reason="sh")
@pytest.mark.parametrize(
    "line", ["ssh somewhere python mark.py", "docker run image python mark.py", "srun ./train"]
)
def test_a_shell_script_that_goes_elsewhere_is_stopped(tmp_path: Path, line: str) -> None:
    (tmp_path / "run.sh").write_text(f"{line}\n")
    result = cli.lora_doctor("dry-run", "--", "sh", "run.sh", cwd=tmp_path)
    assert result.code == 2
    assert "where no guest is" in " ".join(result.out.split())


@pytest.mark.skipif(os.name != "posix", reason="sh")
def test_a_shell_script_that_clears_the_environment_is_stopped(tmp_path: Path) -> None:
    """A Python without a guest is seen from outside, long before it could import torch."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(3)\nopen('mark', 'w').close()\n")
    (tmp_path / "run.sh").write_text(f"env -u PYTHONPATH {sys.executable} slow.py\n")
    result = cli.lora_doctor("dry-run", "--", "sh", "run.sh", cwd=tmp_path)
    assert result.code == 2
    assert "started without the environment" in " ".join(result.out.split())
    assert not (tmp_path / "mark").exists()


def test_a_child_that_would_have_no_guest_stops_its_parent(tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'open(\"mark\", \"w\").close()'], env={})\n"
    )
    result = cli.lora_doctor("dry-run", "launch.py", cwd=tmp_path)
    assert result.code == 2
    assert "has no guest" in " ".join(result.out.split())
    assert not (tmp_path / "mark").exists()


def test_the_users_own_sitecustomize_still_runs(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import builtins\nbuiltins.from_site = 7\n")
    (tmp_path / "script.py").write_text("print(from_site)\nraise SystemExit(from_site)\n")
    result = cli.lora_doctor(
        "dry-run", "script.py", cwd=tmp_path, env={"PYTHONPATH": f"{cli.ROOT}{os.pathsep}{own}"}
    )
    assert result.code == 2
    assert "exit code 7" in " ".join(result.out.split())


# --- what cannot be answered ----------------------------------------------------------------------


def test_a_package_that_is_missing_is_no_finding(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("\nimport a_package_that_nobody_has\n")
    result = cli.lora_doctor("dry-run", "train.py", cwd=tmp_path)
    assert result.code == 2
    assert "train.py:2: ModuleNotFoundError" in " ".join(result.out.split())


def test_a_package_that_another_python_lacks_is_told_with_that_python(tmp_path: Path) -> None:
    """The environment of lora-doctor was not activated: `python` is another one."""
    own = tmp_path / "bin" / "python"
    own.parent.mkdir()
    own.symlink_to(os.path.realpath(sys.executable))
    (tmp_path / "train.py").write_text("import a_package_that_nobody_has\n")
    result = cli.lora_doctor("dry-run", "--", str(own), "train.py", cwd=tmp_path)
    assert result.code == 2
    told = f"(the command's Python is {own}; lora-doctor runs in {sys.executable})"
    assert "".join(told.split()) in "".join(result.out.split())


def test_a_script_that_does_not_train_is_undetermined(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('nothing to do')\n")
    result = cli.lora_doctor("dry-run", "train.py", cwd=tmp_path)
    assert result.code == 2
    assert "took no optimizer step" in " ".join(result.out.split())


def test_the_time_limit_ends_everything_that_was_started(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(8); "
        'open("mark", "w").close()\'], start_new_session=True)\n'
        "import time\ntime.sleep(60)\n"
    )
    result = cli.lora_doctor("dry-run", "--time-limit", "2", "train.py", cwd=tmp_path, timeout=60)
    assert result.code == 2
    assert "--time-limit" in " ".join(result.out.split())
    time.sleep(8)
    assert not (tmp_path / "mark").exists(), "a process was left running"


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "train.py").write_text(
        "open('started', 'w').close()\nimport time\ntime.sleep(4)\nopen('mark', 'w').close()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_doctor", "dry-run", "train.py"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(cli.ROOT), "TMPDIR": str(temporary)},
    )  # fmt: skip
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (130, -number)
    assert not list(temporary.iterdir())
    time.sleep(4)
    assert not (tmp_path / "mark").exists()


_CHILDREN = """
import os, subprocess, sys, time

forever = [sys.executable, "-c", "import time; time.sleep(600)"]
own = subprocess.Popen(forever)
away = subprocess.Popen(forever, start_new_session=True)
bare = subprocess.Popen(["sleep", "600"], env={})
with open("pids.new", "w") as file:
    print(os.getpid(), own.pid, away.pid, bare.pid, file=file)
os.rename("pids.new", "pids")
"""


def _started(tmp_path: Path, then: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A dry run of a script with children, once they are there, and the numbers of all of them."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "train.py").write_text(_CHILDREN + then)
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_doctor", "dry-run", "train.py"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(cli.ROOT), "TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    pids = tmp_path / "pids"
    ended = False
    while not pids.exists():
        assert not ended, process.communicate()
        time.sleep(0.05)
        ended = process.poll() is not None  # before the file is looked for: it may be the last act
    return process, [int(word) for word in pids.read_text().split()]


def _wait_until_gone(pids: Sequence[int]) -> None:
    """Returns when none of them runs any more; a test that never comes so far is ended by pytest's
    own limit."""
    import psutil

    for pid in pids:
        try:
            psutil.Process(pid).wait(timeout=120)
        except psutil.NoSuchProcess:
            continue


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_whatever_ends_us_ends_all_that_the_command_has_started(
    tmp_path: Path, number: int
) -> None:
    """Also what left the process group, and what has no environment; SIGKILL cannot be handled, so
    that somebody else has to see it."""
    process, pids = _started(tmp_path, "time.sleep(600)\n")
    process.send_signal(number)
    process.communicate()
    _wait_until_gone(pids)
    for _ in range(1200):  # the watcher removes the folder last
        if not list((tmp_path / "temporary").iterdir()):
            break
        time.sleep(0.05)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("end", ["raise ValueError('a crash')", "os.abort()", "os._exit(3)"])
def test_a_crash_of_the_users_code_leaves_nothing_running(tmp_path: Path, end: str) -> None:
    process, pids = _started(tmp_path, f"{end}\n")
    process.communicate()
    assert process.returncode in (1, 2)
    _wait_until_gone(pids)
    assert not list((tmp_path / "temporary").iterdir())
