"""Files of training frameworks as their projects publish them: read without a false word."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.cli.given_command import file_of
from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import ENTRY, REMOVE, Edit
from lora_doctor.recipe.files.read_write import apply_edits, read_recipe
from lora_doctor.recipe.program.made_arguments import made_arguments
from lora_doctor.recipe.program.read_setup import read_setup


def written(tmp_path: Path, text: str, name: str = "set_up.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_arguments_of_axolotls_plugins_are_its_own(tmp_path: Path) -> None:
    """They are in classes beside each plugin, which axolotl adds to those of its schema where the
    plugin is switched on; a plugin of somebody else's may have any."""
    text = (
        "base_model: org/model\nadapter: lora\nlora_r: 8\nlora_target_linear: true\n"
        "plugins:\n- axolotl.integrations.liger.LigerPlugin\nliger_rms_norm_gated: true\n"
        "swanlab_log_completions: false\nliger_rms_nrom: true\n"
    )
    set_up = read_recipe(written(tmp_path, text)).set_up
    assert set_up is not None
    assert set_up.unknown == {"swanlab_log_completions": "", "liger_rms_nrom": "liger_rms_norm"}
    others = text.replace("plugins:\n", "plugins:\n- my_code.Plugin\n")
    set_up = read_recipe(written(tmp_path, others)).set_up
    assert set_up is not None and set(set_up.unknown) == {"liger_rms_nrom"}


_COMMENTED = """\
base_model: org/model
adapter: lora
"lora_rr": 8  # the rank
lora_target_modules:
  # attention
  - q_proj
  - vproj  # value
learning_rate: 1e-4
"""


def test_a_key_is_renamed_and_an_item_changed_at_its_place(tmp_path: Path) -> None:
    path = written(tmp_path, _COMMENTED)
    edits = [Edit(f"{ENTRY}lora_rr", REMOVE), Edit(f"{ENTRY}lora_r", 8),
             Edit("target_modules", ["q_proj", "v_proj"])]  # fmt: skip
    apply_edits(path, edits)
    assert path.read_text() == _COMMENTED.replace("lora_rr", "lora_r").replace("vproj", "v_proj")


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ('{"model_name_or_path": "m", "stage": "sft", "lora_rnak": 8}', "lora_rnak", "lora_rank"),
        ("llamafactory-cli train --model-name-or-path m --stage sft --lora-rnak 8", "lora-rnak",
         "lora-rank"),
        ("swift sft --model m --tuner_type lora --lora_r=8 --lora_alpha 2", "lora_r", "lora_rank"),
    ],
)  # fmt: skip
def test_a_key_is_renamed_in_every_syntax(text: str, old: str, new: str, tmp_path: Path) -> None:
    path = written(tmp_path, text, "set_up.json" if text.startswith("{") else "train.sh")
    value = 8 if text.startswith("{") else "8"
    names = old.replace("-", "_"), new.replace("-", "_")
    apply_edits(path, [Edit(ENTRY + names[0], REMOVE), Edit(ENTRY + names[1], value)])
    assert path.read_text() == text.replace(old, new)


_ARRAY = """\
#!/usr/bin/env bash
RANK=8
ARGS=(
  --model_name_or_path org/model
  --stage sft  # supervised
  --finetuning_type lora --lora_rank "$RANK"
  --lora_target q_proj,v_proj
  --output_dir "out/${MODEL##*/}"
)
llamafactory-cli train "${ARGS[@]}" --learning_rate 1e-4 "$@"
"""


def test_arguments_in_an_array_are_read_and_changed_there(tmp_path: Path) -> None:
    path = written(tmp_path, _ARRAY, "train.sh")
    recipe = read_recipe(path)
    assert (recipe.get("r"), recipe.get("learning_rate")) == (8, 1e-4)
    assert recipe.get("target_modules") == ["q_proj", "v_proj"]
    assert recipe.places["target_modules"].line == 7
    edits = [Edit("target_modules", ["o_proj"]), Edit("r", 4), Edit("lora_dropout", 0.1)]
    apply_edits(path, edits)
    assert path.read_text() == (
        _ARRAY.replace("q_proj,v_proj", "o_proj").replace("RANK=8", "RANK=4")
        .replace("1e-4 ", "1e-4 --lora_dropout 0.1 ")
    )  # fmt: skip


def test_what_only_the_shell_knows_is_asked_for_where_it_counts(tmp_path: Path) -> None:
    path = written(tmp_path, _ARRAY.replace("q_proj,v_proj", "$(cat targets)"), "train.sh")
    with pytest.raises(InputError, match=r"train.sh:7:.*lora_target is only known to the shell"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("words", "file", "arguments"),
    [
        (("llamafactory-cli", "train", "set_up.yaml"), "set_up.yaml", ()),
        (("accelerate", "launch", "-m", "axolotl.cli.train", "set_up.yaml"), "set_up.yaml", ()),
        (("trl", "sft", "--config", "set_up.yaml"), "set_up.yaml", ()),
        (("accelerate", "launch", "train.py", "--lr", "1e-4"), "train.py", ("--lr", "1e-4")),
    ],
)
def test_a_command_names_the_file_that_is_fixed(
    words: tuple[str, ...],
    file: str,
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "pass\n", "train.py")
    assert file_of(words) == (file, arguments)


@pytest.mark.parametrize(
    "words",
    [("llamafactory-cli", "train", "set_up.yaml", "lora_rank=4"), ("make", "train")],
    ids=["settings-beside-it", "no-file"],
)
def test_a_command_without_one_file_is_told_how_to_be_fixed(words: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="write the command into a script"):
        file_of(words)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["trl", "llamafactory"])
def test_the_trainers_own_class_says_which_arguments_it_refuses(framework: str) -> None:
    """By the framework's parser where it is installed; what only this machine lacks is none."""
    from lora_doctor.evidence.refused_arguments import gather

    healthy = {"model_name_or_path": "org/model", "dataset": "mine", "template": "llama3",
               "stage": "sft", "do_train": True, "bf16": True, "output_dir": "out",
               "lr_scheduler_type": "cosine", "learning_rate": 1e-4}  # fmt: skip

    def refused(**more: object) -> list[str]:
        found = gather({}, {}, [], framework, {**healthy, **more})
        assert found["asked"] == 1
        return [refusal["message"] for refusal in found["refusals"]]

    assert refused() == []
    (message,) = refused(lr_scheduler_type="cosinus")
    assert "cosinus" in message
    (message,) = refused(load_best_model_at_end=True, save_strategy="epoch", val_size=0.1)
    assert "load_best_model_at_end" in message


@pytest.mark.slow
def test_what_more_processes_or_another_spelling_allow_is_not_refused() -> None:
    """A batch that eight processes share between the generations of a prompt is none too small;
    an empty list and a value that begins with a dash are read from a file as any other."""
    pytest.importorskip("trl")
    from lora_doctor.evidence.refused_arguments import gather

    shared = {"per_device_train_batch_size": 1, "num_generations": 8}
    calls = [{"name": "trl.GRPOConfig", "values": values}
             for values in (shared, {**shared, "num_generations": 1})]  # fmt: skip
    entries = {"lora_target_modules": [], "dataset_name": "-mine"}
    found = gather({}, {}, calls, "trl", entries)
    assert [refusal["number"] for refusal in found["refusals"]] == [1]


def test_arguments_with_a_value_that_the_text_does_not_say_are_not_made(tmp_path: Path) -> None:
    text = (
        "from transformers import Trainer, TrainingArguments\n"
        "import random\n"
        "one = TrainingArguments('out', num_train_epochs=2, report_to=random.choice('ab'))\n"
        "other = TrainingArguments('out', num_train_epochs=random.random())\n"
    )
    made = made_arguments(read_setup(written(tmp_path, text, "train.py")))
    assert [(one.values, one.place.line) for one in made] == [({"num_train_epochs": 2}, 3)]
