"""LD653: a folder without the state of a Trainer, and programs that do not hand it to one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import lora_doctor

SCRIPT = (Path(__file__).parent / "scripts" / "resumed_from_adapter.py").read_text()
FOLDER = "tests/folders/base_without_head"
CALL = f'trainer.train(resume_from_checkpoint="{FOLDER}")\n'
MADE = "trainer = Trainer("
OWN = """class Own(Trainer):
    def {method}(self, *args, **kwargs):
        return super().{method}()


trainer = Own("""


def _told(path: Path) -> bool:
    return bool(lora_doctor.check(str(path), depth="static", select=["LD653"]).findings)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (CALL, CALL, True),
        (CALL, f"def main():\n    {CALL}\n\ntry:\n    main()\nexcept Exception:\n    pass\n", True),
        (CALL, f"try:\n    {CALL}except OSError:\n    trainer.train()\n", False),
        (CALL, f"try:\n    {CALL}except KeyboardInterrupt:\n    pass\n", True),
        (CALL, f"try:\n    {CALL}except Exception as e:\n    raise SystemExit from e\n", True),
        (MADE, OWN.format(method="train"), False),
        (MADE, OWN.format(method="compute_loss"), True),
    ],
)  # fmt: skip
def test_a_script(old: str, new: str, told: bool, tmp_path: Path) -> None:
    """A ``train`` of the user's own does what it likes with the path, and an exception that is
    caught where it is raised ends nothing."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace(old, new))
    assert _told(script) is told


def test_what_the_folder_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its owner sees which folder it is; one that cannot be looked into may have it all."""
    folder = tmp_path / "saved"
    folder.mkdir()
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace(FOLDER, "saved"))

    def held() -> str:
        (found,) = lora_doctor.check(str(script), depth="static", select=["LD653"]).findings
        assert found.location.line == 1 + SCRIPT[: SCRIPT.index(CALL)].count("\n")
        return str(found.evidence[0].value)

    assert held() == "nothing"
    for name in "ihgfedcba":
        (folder / name).touch()
    assert held() == "a, b, c, d, e, f, g, h"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "saved")
    assert not _told(script)


@pytest.mark.parametrize(
    ("options", "told"), [("", True), ("ignore_data_skip: true\n", False)], ids=["", "weights"]
)
def test_ms_swift_may_load_the_weights_alone(options: str, told: bool, tmp_path: Path) -> None:
    path = tmp_path / "swift.yaml"
    path.write_text(
        "model: arch:llama\ntuner_type: lora\ndataset: data\nresume_only_model: true\n"
        f"resume_from_checkpoint: {FOLDER}\n{options}"
    )
    assert _told(path) is told
