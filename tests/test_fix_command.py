"""`lora-doctor fix --apply -- COMMAND`: the file that a training command names, and the command."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_doctor.cli import fix_command
from lora_doctor.cli.given_command import file_of
from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import Edit
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import AppliedFix, Diagnosis
from lora_doctor.results.finding import Finding, Location, Measurement, Proof
from lora_doctor.results.fix import Fix, Safety
from lora_doctor.static.model_source import ModelSource
from tests import cli

SCRIPTS = Path(__file__).parent / "dry_runs"


@pytest.mark.slow
def test_the_script_is_fixed_and_the_command_dry_run_from_it(tmp_path: Path) -> None:
    """Names of BERT on Llama: broken before, and the command itself is healthy from the file that
    was written. The report that was asked for stays that of the fix."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 8, "max_position_embeddings": 512, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    script = tmp_path / "trainer_peft.py"
    shutil.copy(SCRIPTS / "trainer_peft.py", script)
    healthy = script.read_text()
    broken = healthy.replace('["q_proj", "v_proj"]', '["query", "value"]')
    assert broken != healthy
    script.write_text(broken)
    result = cli.lora_doctor(
        "fix", "--apply", "--output", "json=fix.json", "--output-format", "concise",
        "--", sys.executable, "trainer_peft.py", cwd=tmp_path,
    )  # fmt: skip
    assert "dry run of the command: healthy" in result.err, result.out + result.err
    assert result.code == 0
    assert '"query"' not in script.read_text()
    assert (tmp_path / "trainer_peft.py.bak").read_text() == broken
    report = json.loads((tmp_path / "fix.json").read_text())
    assert [finding["rule"] for finding in report["findings"]] == ["LD201"]
    assert report["applied"] and report["dry_run"] is None


_LOOP = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

config = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4,
)
model = AutoModelForCausalLM.from_config(config)  # no name that could be read
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_porj"]))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(3):
    ids = torch.randint(0, 256, (2, 16))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.slow
def test_what_only_the_dry_run_finds_is_written_and_dry_run_again(tmp_path: Path) -> None:
    """Which model it is only the run knows; what it finds is mended where it is written."""
    script = tmp_path / "train.py"
    script.write_text(_LOOP)
    result = cli.lora_doctor(
        "fix", "--apply", "--output-format", "concise", "--", sys.executable, "train.py",
        cwd=tmp_path,
    )  # fmt: skip
    assert "dry run of the command: healthy" in result.err, result.out + result.err
    assert result.code == 0
    assert script.read_text() == _LOOP.replace("v_porj", "v_proj")
    assert (tmp_path / "train.py.bak").read_text() == _LOOP


def _misspelt(safety: Safety = "unproven") -> tuple[Finding, Diagnosis]:
    """What a dry run finds in `_LOOP`, with the fix that it has not tried."""
    edit = Edit("target_modules", ["q_proj", "v_proj"])
    finding = Finding(
        "LD202", "some-targets-match-nothing", "warning", "x", Location("recipe", "target_modules"),
        (Measurement("x", "y", "z"),),
        proof=Proof("measured", "x"),
        fixes=(Fix("Use v_proj.", safety, () if safety == "manual" else (edit,)),),
    )  # fmt: skip
    empty = Diagnosis(
        model=ModelSource("module", "x"), recipe=Recipe(), depth="tiny", environment={}
    )
    return finding, replace(empty, findings=(finding,))


@pytest.mark.parametrize(
    ("safety", "command", "expected"),
    [
        ("unproven", "python train.py --out 'my run'", "fix --apply -- {typed}"),
        ("unproven", "torchrun --nproc_per_node 2 train.py", "fix --apply -- {typed}"),
        ("unsafe", "python train.py", "fix --unsafe-fixes --apply -- {typed}"),
        ("manual", "python train.py", "explain LD202"),
        ("unproven", "python -m train", "explain LD202"),  # names no file
    ],
)
def test_a_dry_run_with_a_fix_ends_in_the_command_that_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safety: Safety, command: str, expected: str
) -> None:
    (tmp_path / "train.py").write_text(_LOOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fix_command, "codes_ignored", lambda _: ())
    monkeypatch.setattr(fix_command.click, "get_current_context", lambda: SimpleNamespace(meta={}))
    ran = fix_command.after_dry_run(_misspelt(safety)[1], {"command": tuple(shlex.split(command))})
    assert ran.next_command == f"lora-doctor {expected.format(typed=command)}"
    assert (tmp_path / "train.py").read_text() == _LOOP
    (tmp_path / "train.py").write_text("print('trains elsewhere')\n")  # has no place for it
    ran = fix_command.after_dry_run(ran, {"command": tuple(shlex.split(command))})
    assert ran.next_command == "lora-doctor explain LD202"


@pytest.mark.parametrize("helps", [True, False])
def test_a_fix_that_does_not_help_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    """The file is as it was then, and no backup is left. The dry run itself is another test's."""
    script = tmp_path / "train.py"
    script.write_text(_LOOP)
    finding, before = _misspelt()
    other = replace(finding, rule="LD404", fixes=())
    better = replace(before, findings=(other,))
    before = replace(before, findings=(finding, other))
    monkeypatch.setattr(fix_command, "_run", lambda *_: better if helps else before)
    monkeypatch.setattr(fix_command, "codes_ignored", lambda _: ())
    monkeypatch.setattr(fix_command.click, "get_current_context", lambda: SimpleNamespace(meta={}))
    options = {"unsafe_fixes": False, "format_name": None}
    after = fix_command._fixed(script, (), before, ["python", "train.py"], options)
    assert (after is better) == helps
    assert script.read_text() == (_LOOP.replace("v_porj", "v_proj") if helps else _LOOP)
    assert (tmp_path / "train.py.bak").exists() == helps


_OF_TRL = "trl sft --model_name_or_path org/model --use_peft --lora_target_modules q_porj\n"


@pytest.mark.parametrize(
    "command", ["bash run.sh", "sh -ex run.sh 0", "./run.sh", "zsh run.sh", "bash jobs/run.sh"]
)
def test_a_shell_file_is_the_set_up_of_its_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words behind it are none of the training's where it does not hand them on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    for name in ("run.sh", "jobs/run.sh"):
        (tmp_path / name).write_text(f'#!/bin/sh\n# not "$@"\n{_OF_TRL}')
    words = shlex.split(command)
    assert file_of(words) == (next(word for word in words if word.endswith(".sh")), ())


def test_words_that_a_shell_file_hands_on_are_not_overlooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.sh").write_text(_OF_TRL.strip() + ' "$@"\n')
    assert file_of(["bash", "run.sh"]) == ("run.sh", ())
    with pytest.raises(InputError, match="hands the words behind it on"):
        file_of(["bash", "run.sh", "--lora_r", "4"])


_SCRIPT = """
import argparse
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--rank", type=int)
args = parser.parse_args()
model = AutoModelForCausalLM.from_pretrained("org/model")
config = LoraConfig(r=args.rank, target_modules=["q_proj", "v_porj"])
model = get_peft_model(model, config)
"""


@pytest.mark.parametrize(
    ("run", "mended"),
    [
        (_OF_TRL, {"run.sh": _OF_TRL.replace("q_porj", "q_proj v_proj")}),
        ("TARGETS=q_porj\n" + _OF_TRL.replace(" q_porj", "=$TARGETS"), {}),
        ("R=16\npython train.py --rank=$R\n",
         {"train.py": _SCRIPT.replace("v_porj", "v_proj"),
          "run.sh": "R=8\npython train.py --rank=$R\n"}),
    ],
    ids=["of a framework", "one word for two", "starts a script"],
)  # fmt: skip
def test_what_only_the_dry_run_finds_is_written_where_the_shell_file_has_it(
    run: str, mended: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the shell file, in the script that it starts, or in both."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.sh").write_text(run)
    (tmp_path / "train.py").write_text(_SCRIPT)
    edits = (Edit("target_modules", ["q_proj", "v_proj"]),)
    fixes = [AppliedFix("LD202", Fix("Use v_proj.", "unproven", edits))]
    if "train.py" in mended:
        fixes.append(AppliedFix("LD500", Fix("Use 8.", "unproven", (Edit("r", 8),))))
    try:
        texts, _ = fix_command._texts(Path("run.sh"), (), fixes, None)
    except InputError:
        texts = {}
    assert {str(path): data.decode() for path, data in texts.items()} == mended
