"""LD653: a folder without the state of a Trainer, and programs that do not hand it to one."""

from __future__ import annotations

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
