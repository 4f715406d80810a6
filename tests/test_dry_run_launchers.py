"""What launchers need of a dry run: a command for their file, programs beside it, nothing left."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from lora_doctor.dry_run.acts import lightning_validation
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.folders import remove_empty
from lora_doctor.dry_run.command import Command, command_of, with_programs
from lora_doctor.errors import InputError
from lora_doctor.guest.session import Session
from lora_doctor.recipe.files.read_write import as_recipe
from tests.dry_run_setups.table import SETUPS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("base_model: llama\n", ("axolotl", "train")),
        ("model_name_or_path: llama\nstage: sft\n", ("llamafactory-cli", "train")),
        ("model: llama\ntuner_type: lora\n", ("swift", "sft")),
        ("model: llama\ntuner_type: lora\nrlhf_type: dpo\n", ("swift", "rlhf")),
    ],
)
def test_a_file_is_run_by_the_launcher_whose_keys_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: tuple[str, ...]
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / words[0]).write_text("#!/usr/bin/env python3\n")
    (programs / words[0]).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    file = tmp_path / "config.yaml"
    file.write_text(content)
    command = command_of([str(file)])
    assert (Path(command.words[0]).name, command.words[1]) == words
    assert command.words[-1] == str(file)
    assert with_programs(command, {"PATH": "/bin"})["PATH"].startswith(f"/bin{os.pathsep}/")


def test_a_file_of_no_known_launcher_is_told_what_to_type(tmp_path: Path) -> None:
    """Which of TRL's commands a config is for, nothing in it says."""
    file = tmp_path / "config.yaml"
    file.write_text("model_name_or_path: llama\nuse_peft: true\n")
    with pytest.raises(InputError, match="dry-run -- trl sft --config"):
        command_of([str(file)])


def test_a_command_that_the_user_typed_gets_the_path_of_the_user() -> None:
    assert with_programs(Command(("python",), None), {"PATH": "/bin"}) == {"PATH": "/bin"}


def test_only_empty_folders_are_taken_away(tmp_path: Path) -> None:
    made = [tmp_path / "output", tmp_path / "output" / "v0", tmp_path / "kept"]
    for folder in made:
        folder.mkdir()
    (tmp_path / "kept" / "debug.log").write_text("")
    remove_empty([str(folder) for folder in (*made, tmp_path / "gone")])
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_setting_that_a_framework_hands_on_unset_is_unset() -> None:
    """axolotl: ``LoraConfig(fan_in_fan_out=None)``."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], fan_in_fan_out=None)
    recipe = as_recipe(config)
    assert recipe.get("r") == 4 and not recipe.get("fan_in_fan_out")


def test_every_launcher_of_the_table_has_a_healthy_and_a_broken_set_up() -> None:
    for module in ("llamafactory", "axolotl", "swift", "trl"):
        kinds = {bool(setup.expects) for setup in SETUPS if module in setup.needs}
        assert kinds == {True, False}, module


def test_a_trainer_of_lightning_validates_after_the_last_step(tmp_path: Path) -> None:
    """It waits for a batch whose number a loader that ends early never reaches; early stopping on
    a metric of it then raised in a dry run only."""

    class Loop:
        due = enabled = False

        def _should_check_val_fx(self, fetcher: object) -> bool:
            return self.due

        def _should_check_val_epoch(self) -> bool:
            return self.enabled

    module = ModuleType("lightning.pytorch.loops.training_epoch_loop")
    module._TrainingEpochLoop = Loop  # type: ignore[attr-defined]
    acting, loop = Acting(Session(tmp_path, "")), Loop()
    lightning_validation._due(acting, module)
    found = []
    for steps, due, enabled in ((2, True, True), (2, False, True), (3, False, True), (3, False, 0)):
        acting.steps, loop.due, loop.enabled = steps, due, bool(enabled)
        found.append(loop._should_check_val_fx(None))
    assert found == [True, False, True, False]
