"""LD220: what makes an initialisation may stand in another file, or in a package."""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_doctor

SCRIPT = (Path(__file__).parent / "scripts" / "eva_not_initialised.py").read_text()
TRAINS = "trainer = Trainer("
HELPER = (
    "from peft import initialize_lora_eva_weights\n\n\n"
    "def prepare(model):\n    initialize_lora_eva_weights(model, [])\n"
)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("from helper import prepare\nprepare(model)\n", False),
        ("from unread.package import prepare\nprepare(model)\n", False),
        ("from unread.package import prepare\nprepare(config)\n", True),
        ("from accelerate import Accelerator\nmodel = Accelerator().prepare(model)\n", True),
        ("print(model)\n", True),
    ],
)
def test_somebody_else_may_call_it(lines: str, told: bool, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(HELPER)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace(TRAINS, lines + TRAINS))
    found = lora_doctor.check(str(script), depth="static", select=["LD220"]).findings
    assert bool(found) is told
