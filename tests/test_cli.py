"""The command line, in real processes: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.cli import ROOT, lora_doctor, needs_phi3

LLAMA_7 = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
SCHEMA = json.loads((ROOT / "lora_doctor/schema/diagnosis-2.json").read_text("utf-8"))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder with the config of a small Llama, no weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 256, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def test_without_a_command_the_help_is_shown_line_by_line() -> None:
    result = lora_doctor()
    told = (result.err or result.out).splitlines()  # click 8.1 writes it to standard output
    assert told[0].startswith("Usage: lora-doctor") and "Commands:" in told
    assert lora_doctor("verify").err == (
        "lora-doctor: Missing argument 'MODEL'; see lora-doctor verify --help\n"
    )


# --- bad input: one line, exit code 2, nothing written --------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "./nope"], "no such folder"),
        (["check", "arch:lama"], "llama"),
        (["check", "arch:"], "arch:NAME"),
        (["check", "a b c"], "MODEL"),
        (["check", "tests.models:nope"], "tests.models"),
        (["check", "no.such.module:factory"], "no.such"),
        (["check", "arch:llama", "--r", "0"], "r must be a whole number"),
        (["check", "arch:llama", "--lora-dropout", "1.5"], "lora_dropout"),
        (["check", "arch:llama", "--task-type", "CASUAL_LM"], "CAUSAL_LM"),
        (["check", "arch:llama", "--dtype", "int7"], "dtype"),
        (["check", "arch:llama", "--load-in-4bit", "--load-in-8bit"], "exclude each other"),
        (["check", "arch:llama", "--target-modules", "(q_proj"], "regular expression"),
        (["check", "arch:llama", "--select", "XX9"], "XX9"),
        (["check", "arch:llama", "--select", "LD1", "--ignore", "LD1"], "no rule"),
        (["verify", "arch:llama", "--select", "LD2"], "LD001"),
        (["check", "arch:llama", "--time-limit", "nan"], "finite"),
        (["check", "arch:llama", "--memory-limit", "inf"], "finite"),
        (["check", "arch:llama", "--modules-to-save", ","], "--modules-to-save"),
        (["check", "arch:llama", "--depth", "full"], "no weights"),
        (["check", ""], "MODEL is empty"),
        (["check", "arch:llama", "--recipe", "nope.yaml"], "nope.yaml"),
        (["check", "arch:llama", "--output-file", "no/such/dir/x.json"], "no/such/dir"),
        (["check", "arch:llama", "--rules", "nowhere"], "nowhere"),
        (["check"], "MODEL"),
        (["check", "arch:llama", "--nope"], "--nope"),
        (["explain", "LD999"], "LD999"),
        (["explain", "a message that nobody has ever seen"], "no rule knows"),
        (["fix", "arch:llama", "--apply", "--output-dir", "no/such"], "no/such"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    result = lora_doctor(*arguments, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert result.code == 2, result
    assert says in result.one_line_error
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "config.json"),
        ("{", "config.json"),
        ("[]", "object"),
        ("{}", "model_type"),
        ('{"model_type": "lama"}', "llama"),
        ('{"model_type": "llama", "hidden_size": -4}', "hidden_size"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000}', "num_hidden_layers"),
        ('{"model_type": "llama", "hidden_size": "big"}', "hidden_size"),
    ],
)
def test_a_broken_config_is_told_at_every_depth(
    content: str | None, says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content, "utf-8")
    for depth in ("static", "tiny"):
        result = lora_doctor("check", folder, "--depth", depth)
        assert result.code == 2, result
        assert says in result.one_line_error and result.out == ""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import sys; sys.exit(0)", "SystemExit"),
        (
            "from lora_doctor.rule_api import Rule\nclass Mine(Rule):\n    code = 'XX1'",
            "no name",
        ),
    ],
)
def test_a_rule_file_that_is_none_is_one_line(body: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(body, "utf-8")
    result = lora_doctor("rules", "--rules", tmp_path)
    assert result.code == 2 and says in result.one_line_error


def test_a_regular_expression_of_a_file_is_compiled(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("target_modules: '(q_proj'\n", "utf-8")
    result = lora_doctor("check", "arch:llama", "--recipe", recipe, "--depth", "static")
    assert result.code == 2 and "regular expression" in result.one_line_error


def test_unknown_recipe_key_names_the_near_miss(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("target_module: [q_proj]\n", "utf-8")
    result = lora_doctor("check", "arch:llama", "--recipe", recipe)
    assert result.code == 2
    assert "target_modules" in result.one_line_error and str(recipe) in result.err


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise RuntimeError('no luck')", "no luck"),
        ("return 5", "int"),
        ("import sys; sys.exit(3)", ""),
    ],
)
def test_a_factory_that_fails_is_one_line(body: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"def factory():\n    {body}\n", "utf-8")
    result = lora_doctor("check", "mine:factory", "--target-modules", "x", cwd=tmp_path)
    assert result.code == 2, result
    assert says in result.err and "Traceback" not in result.err


# --- good input -----------------------------------------------------------------------------------


@needs_phi3
def test_phi3_with_llamas_names_is_found_explained_and_ends_in_the_next_command() -> None:
    """The first thing that a new user sees."""
    result = lora_doctor("check", "arch:phi3", "--target-modules", LLAMA_7)
    assert result.code == 1, result
    assert "LD202" in result.out
    for name in ("qkv_proj", "gate_up_proj", "o_proj", "down_proj"):
        assert name in result.out
    last = result.out.strip().splitlines()[-1]
    assert last.strip().startswith("lora-doctor fix arch:phi3") or "lora-doctor fix" in last
    assert result.err == ""


def test_a_healthy_recipe_is_one_line_and_exit_code_0() -> None:
    result = lora_doctor(
        "check", "arch:llama", "--task-type", "CAUSAL_LM", "--target-modules", "q_proj,v_proj",
        "--r", "8", "--lora-alpha", "16", "--lora-dropout", "0",
    )  # fmt: skip
    assert result.code == 0, result
    assert len(result.out.strip().splitlines()) <= 3, result.out


@needs_phi3
def test_without_a_recipe_one_is_proposed_printed_and_checked() -> None:
    result = lora_doctor("check", "arch:phi3")
    assert result.code == 0, result
    assert "qkv_proj" in result.out


@needs_phi3
def test_fix_writes_recipe_prescription_and_report_and_the_result_is_healthy(
    tmp_path: Path,
) -> None:
    result = lora_doctor("fix", "arch:phi3", "--target-modules", LLAMA_7, "--apply", cwd=tmp_path)
    assert result.code == 0, result
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "lora-doctor.recipe.yaml", "lora-doctor.prescription.json", "lora-doctor.html",
    }  # fmt: skip
    again = lora_doctor("check", "arch:phi3", "--recipe", tmp_path / "lora-doctor.recipe.yaml")
    assert again.code == 0, again


def test_fix_edits_the_users_file_in_place_and_keeps_the_rest_of_it(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "# my run\ntask_type: CAUSAL_LM   # as always\ntarget_modules:\n  - q_proj\n  - v_proj\n"
        "r: 8\n",
        "utf-8",
    )
    shown = lora_doctor("fix", "arch:gpt2", "--recipe", recipe, "--diff")
    assert shown.code == 1 and "+" in shown.out and recipe.read_text("utf-8").count("q_proj") == 1
    result = lora_doctor("fix", "arch:gpt2", "--recipe", recipe, "--apply", "--diff", cwd=tmp_path)
    assert result.code == 0 and "wrote" in result.err, result
    assert result.out == shown.out, "--diff chooses what is printed, --apply what is written"
    text = recipe.read_text("utf-8")
    assert "# my run\ntask_type: CAUSAL_LM   # as always\n" in text and "c_attn" in text
    assert "q_proj" in (tmp_path / "mine.yaml.bak").read_text("utf-8")


def test_static_depth_says_that_nothing_is_proven(model_folder: Path) -> None:
    """Without running anything there is no "healthy"."""
    result = lora_doctor("check", model_folder, "--depth", "static", "--output-format", "json")
    diagnosis = json.loads(result.out)
    assert result.code == 0
    assert diagnosis["verdict"] == "undetermined"
    assert {item["rule"] for item in diagnosis["skipped"]} >= {"LD001", "LD201"}
    assert not set(diagnosis["passed"]) & {item["rule"] for item in diagnosis["skipped"]}


def test_json_is_clean_and_valid_whatever_a_library_prints(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "print('hello from import')\n"
        "def factory():\n"
        "    import sys, torch\n"
        "    print('hello from the factory'); sys.stderr.write('and stderr')\n"
        "    assert sys.stdin.read() == ''\n"
        "    return torch.nn.Sequential(torch.nn.Linear(4, 4)), {'input': torch.ones(2, 4)}\n",
        "utf-8",
    )
    result = lora_doctor(
        "check", "noisy:factory", "--target-modules", "0", "--output-format", "json", cwd=tmp_path
    )
    diagnosis = json.loads(result.out)
    jsonschema.validate(diagnosis, SCHEMA)
    assert "hello" not in result.out and result.err == ""
    assert diagnosis["verification"]["before"] is not None


@needs_phi3
def test_fail_on_decides_the_exit_code() -> None:
    arguments = ["check", "arch:phi3", "--depth", "meta", "--target-modules", LLAMA_7]
    assert lora_doctor(*arguments).code == 1
    assert lora_doctor(*arguments, "--fail-on", "error").code == 0
    assert lora_doctor(*arguments, "--fail-on", "never").code == 0
    assert lora_doctor(*arguments, "--ignore", "LD2").code == 0
    assert lora_doctor(*arguments, "--select", "ld202").code == 1


@needs_phi3
def test_concise_is_one_line_per_finding() -> None:
    result = lora_doctor(
        "check", "arch:phi3", "--depth", "meta", "--target-modules", LLAMA_7,
        "--output-format", "concise",
    )  # fmt: skip
    lines = [line for line in result.out.splitlines() if "LD202" in line]
    assert len(lines) == 1


def test_output_file_gets_the_report_and_stdout_stays_empty(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    result = lora_doctor(
        "check", "arch:gpt2", "--depth", "meta", "--target-modules", "q_proj",
        "--output-format", "html", "--output-file", target,
    )  # fmt: skip
    assert result.out == "" and result.code == 1
    assert "LD201" in target.read_text("utf-8")


def test_rules_lists_every_rule_on_one_line() -> None:
    result = lora_doctor("rules")
    codes = [line.split()[0] for line in result.out.splitlines()]
    assert codes == sorted(codes) and {"LD001", "LD101", "LD201"} <= set(codes)


def test_explain_finds_the_rule_of_a_pasted_traceback() -> None:
    pasted = (
        'Traceback (most recent call last):\n  File "train.py", line 3\n'
        "AttributeError: 'LlamaModel' object has no attribute 'prepare_inputs_for_generation'\n"
    )
    assert "LD101" in lora_doctor("explain", "-", stdin=pasted).out
    assert "LD201" in lora_doctor("explain", "ld201").out


def test_verify_names_its_checks_with_numbers() -> None:
    result = lora_doctor("verify", "arch:llama", "--target-modules", "q_proj,v_proj")
    assert result.code == 0, result
    for name in ("gradients", "loss-falls", "save-reload", "merge"):
        assert name in result.out
    # `check` may find the data or the arguments of the same set-up wrong.
    assert "The training contract passed" in result.out and "Healthy" not in result.out
    assert "not checked (lora-doctor check does)" in " ".join(result.out.split())


@pytest.mark.parametrize("command", ["rules", "explain LD101"])
def test_a_reader_that_has_gone_is_no_failure(command: str) -> None:
    """`lora-doctor rules | head -1` in a script with pipefail."""
    pipe = f"set -o pipefail; {sys.executable} -m lora_doctor {command} | true"
    done = subprocess.run(["bash", "-c", pipe], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_env_is_ready_to_paste() -> None:
    result = lora_doctor("env", "--no-devices")
    assert result.code == 0 and "transformers" in result.out and "peft" in result.out


# --- a hostile working directory ------------------------------------------------------------------

#: Names that we or the libraries import, as files of a downloaded model repository.
SHADOWS = (
    "click", "rich", "jinja2", "packaging", "huggingface_hub", "psutil", "torch", "transformers",
    "peft", "numpy", "__future__", "dataclasses", "json",
)  # fmt: skip


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    """A folder whose modules leave a trace when somebody imports them."""
    for name in SHADOWS:
        body = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
        (tmp_path / f"{name}.py").write_text(body, "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("rules",),
        ("env",),
        ("check", "arch:gpt2", "--target-modules", "c_attn", "--output-format", "html"),
    ],
    ids=lambda words: words[0],
)
def test_nothing_of_the_working_directory_is_imported(
    arguments: tuple[str, ...], hostile_folder: Path
) -> None:
    """`python -m lora_doctor` in the folder of a model: its click.py is not ours to run."""
    result = lora_doctor(*arguments, cwd=hostile_folder)
    assert sorted(path.name for path in hostile_folder.glob("*.ran")) == []
    assert result.code == 0, result


def test_a_census_of_two_names_after_one_option_says_how() -> None:
    result = lora_doctor("census", "--select", "llama", "phi3")
    assert result.code == 2
    assert "--select llama --select phi3" in result.err


def test_the_totals_of_a_census_import_nothing_of_the_working_directory(
    hostile_folder: Path,
) -> None:
    command = [sys.executable, "-m", "lora_doctor.census", "nowhere"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=hostile_folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "nowhere" in done.stderr, done
    assert not list(hostile_folder.glob("*.ran"))


def test_a_folder_that_the_user_put_on_the_path_stays(tmp_path: Path) -> None:
    """PYTHONSAFEPATH: what stands first is no doing of `-m`."""
    code = (
        "import os, sys\n"
        "from lora_doctor.import_path import drop_working_directory\n"
        "sys.path.insert(0, os.getcwd()); drop_working_directory()\n"
        "print(sys.path[0] == os.getcwd())"
    )
    for safe in ("", "1"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": safe}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        expected = bool(safe) and sys.version_info >= (3, 11)
        assert done.stdout.split() == [str(expected)]
