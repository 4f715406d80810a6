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
from lora_doctor.recipe.edit import Edit
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Diagnosis
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
