"""What a shell script computes for its training command: whole numbers, and switches turned off."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import Edit
from lora_doctor.recipe.files.read_write import apply_edits, read_recipe
from lora_doctor.recipe.files.shell_arithmetic import arithmetic

_TRL = """\
GPUS=2
trl sft --model_name_or_path org/model --use_peft --dataset_name x --output_dir out \\
  --lora_target_modules q_proj --lora_r ALPHA MORE
"""


def script(tmp_path: Path, rank: str, more: str = "") -> Path:
    path = tmp_path / "train.sh"
    path.write_text(_TRL.replace("ALPHA", rank).replace("MORE", more))
    return path


@pytest.mark.parametrize(
    ("rank", "value"),
    [
        ("$((16 / GPUS))", 8),
        ('"$(( 2 * $GPUS + 4 ))"', 8),
        ("$(expr 16 / $GPUS)", 8),
        ("$(expr 4 \\* ${GPUS})", 8),
        ("$((17 % 9))", 8),
        ("$((-1 * -8))", 8),
    ],
)
def test_whole_numbers_are_computed(tmp_path: Path, rank: str, value: int) -> None:
    path = script(tmp_path, rank)
    assert read_recipe(path).get("r") == value
    apply_edits(path, [Edit("r", 4)])  # the text of the sum gives way to the number
    new = '"4"' if rank.startswith('"') else "4"
    assert path.read_text() == _TRL.replace("ALPHA", new).replace("MORE", "")


@pytest.mark.parametrize(
    "rank", ["$((16 / UNKNOWN))", "$((2 ** 3))", "$((8 / 0))", "$(nproc)", "$((1 ? 8 : 4))"]
)
def test_what_only_the_shell_knows_is_not_guessed(tmp_path: Path, rank: str) -> None:
    with pytest.raises(InputError, match="only known to the shell"):
        read_recipe(script(tmp_path, rank))


def test_arithmetic_of_any_length_is_no_crash() -> None:
    assert arithmetic("((" + "1+" * 5000 + "1))", {}) == (None, [])
    assert arithmetic("((" + "(" * 90 + "1))", {})[0] is None


def test_a_switch_that_is_turned_off_is_off(tmp_path: Path) -> None:
    """transformers' parser has ``--no_X`` for what is on by default; it is no mistyped key."""
    on = read_recipe(script(tmp_path, "8"))
    off = read_recipe(script(tmp_path, "8", "--no_gradient_checkpointing"))
    assert on.get("gradient_checkpointing") is True
    assert off.get("gradient_checkpointing") is False
    assert off.set_up is not None and not off.set_up.unknown
    wrong = read_recipe(script(tmp_path, "8", "--no_gradient_checkpoint"))
    assert wrong.set_up is not None and wrong.set_up.unknown


@pytest.mark.parametrize("written", ["$GPUS", '"$GPUS"', "${GPUS}", '"${GPUS}"'])
def test_a_joined_variable_is_changed_where_it_is_set(tmp_path: Path, written: str) -> None:
    """``--lora_r=$RANK`` as ``--lora_r $RANK``; not where others use the variable as well."""
    text = _TRL.replace("--lora_r ALPHA MORE", f"--lora_r={written}")
    path = tmp_path / "train.sh"
    path.write_text(text)
    apply_edits(path, [Edit("r", 4)])
    assert path.read_text() == text.replace("GPUS=2", "GPUS=4")
    path.write_text(text + "echo $GPUS\n")
    apply_edits(path, [Edit("r", 4)])
    assert read_recipe(path).get("r") == 4 and path.read_text().startswith("GPUS=2\n")
