"""Files of training frameworks as their projects publish them: read without a false word."""

from __future__ import annotations

from pathlib import Path

from lora_doctor.recipe.files.read_write import read_recipe


def written(tmp_path: Path, text: str, name: str = "set_up.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_arguments_of_axolotls_plugins_are_its_own(tmp_path: Path) -> None:
    """They are in classes beside each plugin, which axolotl adds to those of its schema."""
    text = (
        "base_model: org/model\nadapter: lora\nlora_r: 8\nlora_target_linear: true\n"
        "plugins:\n- axolotl.integrations.liger.LigerPlugin\nliger_rms_norm_gated: true\n"
        "swanlab_log_completions: false\nliger_rope_nrom: true\n"
    )
    set_up = read_recipe(written(tmp_path, text)).set_up
    assert set_up is not None and set(set_up.unknown) == {"liger_rope_nrom"}
