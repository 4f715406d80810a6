"""An adapter config with keys that the installed PEFT does not know: told, not passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_doctor

CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
}  # fmt: skip


def check(folder: Path, **more: Any) -> list[Any]:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**CONFIG, **more}), encoding="utf-8")
    found = lora_doctor.check("arch:llama", recipe=path, depth="static").findings
    return [finding for finding in found if finding.rule == "LD214"]


def test_a_mistyped_key_is_told_with_the_key_that_was_meant(tmp_path: Path) -> None:
    (finding,) = check(tmp_path, lora_alfa=32)
    assert finding.severity == "warning"
    assert "lora_alfa" in finding.message and "did you mean lora_alpha?" in finding.message
    assert finding.written == f"{tmp_path / 'adapter_config.json'}:1"


def test_a_key_of_a_newer_peft_is_told_with_that_release(tmp_path: Path) -> None:
    (finding,) = check(tmp_path, quantum_gates=3, peft_version="99.0")
    assert finding.severity == "info"
    assert "99.0" in finding.fixes[0].title


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
def test_a_key_that_asks_for_nothing_is_silent(tmp_path: Path, value: Any) -> None:
    assert not check(tmp_path, quantum_gates=value)


def test_what_plain_peft_does_with_such_a_key(tmp_path: Path) -> None:
    """The truth that the rule tells of: the value is lost, or loading raises."""
    peft = pytest.importorskip("peft")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, "lora_alfa": 32}))
    try:
        loaded = peft.PeftConfig.from_pretrained(str(tmp_path))
    except TypeError as error:
        assert "lora_alfa" in str(error)
    else:
        assert loaded.lora_alpha == 16 and not hasattr(loaded, "lora_alfa")
