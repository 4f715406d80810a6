"""An adapter_config.json with weights beside it says what they are: it is no free recipe."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from lora_doctor.errors import InputError
from lora_doctor.prescription.write_fix import Plan
from tests.cli import lora_doctor

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}


def adapter(folder: Path, weights: str | None) -> Path:
    """The config of an adapter, and the file of its weights with an empty header."""
    folder.mkdir(exist_ok=True)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(CONFIG))
    if weights:
        (folder / weights).write_bytes(struct.pack("<Q", 2) + b"{}")
    return config


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("write", [False, True])
def test_the_config_of_a_trained_adapter_is_not_edited(
    tmp_path: Path, weights: str, write: bool
) -> None:
    """With other target modules PEFT loads the weights with a warning, and they do nothing."""
    with pytest.raises(InputError, match=f"beside it .{weights}. and is not edited; check MODEL"):
        Plan.make(str(adapter(tmp_path, weights)), str(tmp_path), write)


def test_without_weights_it_is_a_recipe_as_any_other(tmp_path: Path) -> None:
    assert Plan.make(str(adapter(tmp_path, None)), str(tmp_path), True).held is not None


def test_another_file_beside_weights_is_a_recipe(tmp_path: Path) -> None:
    """PEFT reads the one name only."""
    adapter(tmp_path, "adapter_model.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("r: 4\n")
    assert Plan.make(str(recipe), str(tmp_path), True).held == {recipe: b"r: 4\n"}


def test_the_command_line_refuses_and_changes_nothing(tmp_path: Path) -> None:
    config = adapter(tmp_path, "adapter_model.safetensors")
    before = config.read_bytes()
    done = lora_doctor("fix", "arch:vit", "--recipe", config, "--apply", cwd=tmp_path)
    assert done.code == 2
    assert "is not edited" in done.one_line_error
    assert config.read_bytes() == before
    assert {item.name for item in tmp_path.iterdir()} == {config.name, "adapter_model.safetensors"}
