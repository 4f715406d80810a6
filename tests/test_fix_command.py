"""`lora-doctor fix --apply -- COMMAND`: the file that a training command names, and the command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

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
