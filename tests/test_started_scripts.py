"""Shell files that start a training script: it is read with the words and variables that they give
it, whatever launches it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import TrainingArguments

import lora_doctor
from lora_doctor.engine.set_up import edited_file
from lora_doctor.errors import InputError
from lora_doctor.prescription.write_fix import Plan
from lora_doctor.recipe.edit import Edit
from lora_doctor.recipe.files.read_write import read_recipe
from lora_doctor.recipe.files.started_script import only_start_of, started_script
from lora_doctor.recipe.program.edits import edited_program, program_holds
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.recipe import Recipe
from tests import diagnoses

_TRAIN = """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(MODEL)
model = get_peft_model(model, LoraConfig(r=R, target_modules=TARGETS))
"""
_ARGPARSE = (
    """
import argparse
def names(text):
    return text.split(",")
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--lora-r", "-r", type=int, default=8)
parser.add_argument("--targets", type=names, default=["query"])
args = parser.parse_args()
MODEL, R, TARGETS = args.model, args.lora_r, args.targets
"""
    + _TRAIN
)
_DATACLASS = (
    """
from dataclasses import dataclass, field
from transformers import HfArgumentParser
@dataclass
class Given:
    model: str
    lora_r: int = 8
    targets: list = field(default_factory=lambda: ["query"])
(given,) = HfArgumentParser(Given).parse_args_into_dataclasses()
MODEL, R, TARGETS = given.model, given.lora_r, given.targets
"""
    + _TRAIN
)
_FIRE = (
    "import fire\ndef main(model, lora_r=8, targets=('query',)):\n"
    + "    MODEL, R, TARGETS = model, lora_r, list(targets)\n"
    + _TRAIN.replace("\n", "\n    ")
    + "\nfire.Fire(main)\n"
)
_CLICK = (
    "import click\n@click.command()\n@click.option('--model', required=True)\n"
    "@click.option('--lora-r', default=8)\n@click.option('--targets', multiple=True)\n"
    "def main(model, lora_r, targets):\n    MODEL, R, TARGETS = model, lora_r, list(targets)\n"
    + _TRAIN.replace("\n", "\n    ")
    + "\nmain()\n"
)
_ENVIRONMENT = (
    "import os\nMODEL, R = os.environ['MODEL'], int(os.getenv('RANK', '8'))\n"
    "TARGETS = os.environ.get('TARGETS', 'query').split(',')\n" + _TRAIN
)
_OPTIONS = "--model org/model --lora_r 16 --targets q_proj v_proj"


def written(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (_ARGPARSE, "python -u train.py org/model -r 16 --targets q_proj,v_proj"),
        (_ARGPARSE, 'R=16\ntorchrun --nproc_per_node=2 train.py org/model \\\n  --lora-r="$R" '
                    "--targets=q_proj,v_proj > log.txt 2>&1 &"),
        (_ARGPARSE, 'ARGS="-r 16 --targets q_proj,v_proj"\nnohup python train.py org/model $ARGS'),
        (_DATACLASS, f"accelerate launch --config_file a.yaml train.py {_OPTIONS}"),
        (_DATACLASS, f'deepspeed --num_gpus 2 train.py {_OPTIONS} "$@"'),
        (_FIRE, f"python3.11 train.py {_OPTIONS}"),
        (_CLICK, f"uv run train.py {_OPTIONS}"),
        (_ENVIRONMENT, "export MODEL=org/model\nRANK=16 TARGETS=q_proj,v_proj python train.py"),
    ],
)  # fmt: skip
def test_a_script_is_read_with_the_words_that_a_shell_file_gives_it(
    script: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {"train.py": script, "run.sh": f"#!/bin/bash\nset -e\n{command}\n"})
    found = started_script(Path("run.sh"))
    assert found is not None and found.script == Path("train.py")
    setup = read_setup(found.script, None, found.arguments, found.start)
    assert setup.model == "org/model", setup.asked
    assert (setup.recipe.get("r"), setup.recipe.get("target_modules")) == (16, ["q_proj", "v_proj"])
    if script is _ARGPARSE:
        assert setup.recipe.places["r"].file == "run.sh", "where the value stands"


def test_what_only_the_shell_knows_is_asked_for_by_its_name_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "python train.py $MODEL_DIR -r $(nproc) --targets q_proj"
    written(tmp_path, {"train.py": _ARGPARSE, "run.sh": f"\n{command}\n"})
    found = started_script(Path("run.sh"))
    assert found is not None
    setup = read_setup(found.script, None, found.arguments, found.start)
    assert setup.model is None and "r" not in setup.recipe.values
    assert [text for _, text in setup.asked] == [
        "`$(nproc)`, line 2 (r): give --r",
        "`$MODEL_DIR`, line 2: set the variable MODEL_DIR",
    ]


def test_a_module_in_a_package_is_found_from_the_folder_of_the_project(tmp_path: Path) -> None:
    written(tmp_path, {
        "src/pkg/train.py": _ARGPARSE,
        "scripts/run.sh": "cd ../src\npython -m pkg.train org/model\npython -m pkg.report\n",
    })  # fmt: skip
    recipe = read_recipe(tmp_path / "scripts" / "run.sh")
    assert recipe.file is not None and recipe.file.name == "train.py"
    assert recipe.get("target_modules") == ["query"]


def test_only_one_training_is_read_and_only_what_starts_it_alone(tmp_path: Path) -> None:
    """A file that merges or evaluates besides trains once; two trainings are two set-ups."""
    line = "python train.py org/model -r 16\n"
    written(tmp_path, {
        "train.py": _ARGPARSE, "merge.py": "print(1)\n",
        "run.sh": f"cp train.py /tmp\n{line}python merge.py\n", "twice.sh": line + line,
    })  # fmt: skip
    found = started_script(tmp_path / "run.sh")
    assert found is not None and found.start.place.line == 2
    with pytest.raises(InputError, match=r"starts 2 trainings \(lines 1, 2\)"):
        started_script(tmp_path / "twice.sh")
    assert only_start_of(tmp_path / "train.py") is None, "three commands start it"
    (tmp_path / "twice.sh").unlink()
    assert only_start_of(tmp_path / "train.py") == found


def test_a_finding_of_the_command_stands_in_the_shell_file_and_the_script_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    train = (
        _ARGPARSE + "from transformers import Trainer, TrainingArguments\n"
        'Trainer(model, TrainingArguments("out", evaluation_strategy="no")).train()\n'
    )
    written(tmp_path, {"train.py": train, "run.sh": "python train.py org/model --lora-r 0\n"})
    told = {
        one.rule: str(one.location) for one in lora_doctor.check("run.sh", depth="static").findings
    }
    accepted = "evaluation_strategy" in inspect.signature(TrainingArguments).parameters
    own = {} if accepted else {"LD523": "train.py:18"}
    assert told == {**own, "LD223": "run.sh:1"}
    (tmp_path / "run.sh").write_text("python train.py org/model --lora-r 4\n")
    for model in ("run.sh", "train.py"):
        found = lora_doctor.check(model, depth="static")
        assert "read as run.sh:1 starts it" in [note.text for note in found.notes]
        assert found.recipe.get("r") == 4


@pytest.mark.parametrize(
    ("command", "mended"),
    [
        ("python train.py org/model --targets q_porj,v_proj -r 16  # wide",
         "python train.py org/model --targets q_proj,v_proj -r 8  # wide"),
        ('N="q_porj,v_proj"\nR=16\npython train.py org/model \\\n  --lora-r $R --targets "$N"',
         'N="q_proj,v_proj"\nR=8\npython train.py org/model \\\n  --lora-r $R --targets "$N"'),
        ('ARGS="--targets q_porj,v_proj -r 16"\npython train.py org/model $ARGS',
         'ARGS="--targets q_proj,v_proj -r 8"\npython train.py org/model $ARGS'),
        ("python train.py org/model --targets='q_porj,v_proj' --lora-r=16 >log",
         "python train.py org/model --targets='q_proj,v_proj' --lora-r=8 >log"),
        ('N=q_porj,v_proj\nexport A=1\nR=16 # rank\n'
         'python train.py org/model --lora-r=$R --targets="${N}"',
         'N=q_proj,v_proj\nexport A=1\nR=8 # rank\n'
         'python train.py org/model --lora-r=$R --targets="${N}"'),
    ],
)  # fmt: skip
def test_what_the_command_sets_is_changed_in_the_command(
    command: str, mended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {"train.py": _ARGPARSE, "run.sh": f"#!/bin/sh\n{command}\n"})
    recipe = read_recipe("run.sh")
    assert recipe.places["r"].file == recipe.places["target_modules"].file == "run.sh"
    edited = edited_program(recipe, [Edit("r", 8), Edit("target_modules", ["q_proj", "v_proj"])])
    assert edited.get("r") == 8 and edited.get("target_modules") == ["q_proj", "v_proj"]
    assert edited.written is not None and edited.written.start is not None
    assert edited.written.data == _ARGPARSE.encode(), "the script is as it was"
    assert edited.written.start.data.decode() == f"#!/bin/sh\n{mended}\n"


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (_ARGPARSE, 'A=1\npython train.py org/model -r "${A}6"'),
        (_ARGPARSE, 'A=1\npython train.py org/model --lora-r="${A}6"'),
        (_ARGPARSE, 'R=16\npython train.py org/model --lora-r=$R\necho $R'),
        (_ARGPARSE.replace("r=R", "r=R, lora_alpha=2 * R"), "python train.py org/model -r 16"),
        (_DATACLASS, "A='-x'\npython train.py --model org/model --lora_r 16 --targets $A v_proj"),
        (_DATACLASS, "python train.py --model org/model --lora_r 16 --targets \\\n q_porj v_proj"),
    ],
)  # fmt: skip
def test_words_that_are_put_together_or_read_by_others_are_left_alone(
    script: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the command nor the script, in which the value would count for nothing else."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {"train.py": script, "run.sh": command + "\n"})
    recipe = read_recipe("run.sh")
    assert recipe.get("r") == 16
    for edit in (Edit("r", 8), Edit("target_modules", ["q_proj", "v_proj"])):
        if program_holds(recipe, edit):
            edited = edited_program(recipe, [edit])
            assert edited.get(edit.key) == edit.value
            assert edited.written is not None and edited.written.start is not None
            assert edited.written.start.data != command.encode(), "in the command"


def test_the_shell_file_is_written_with_the_script_and_the_old_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "python train.py org/model -r 16\n"
    written(tmp_path, {"train.py": _ARGPARSE, "run.sh": command})
    assert edited_file("run.sh", None) == Path("train.py")
    recipe = read_recipe("run.sh")
    edits = [Edit("r", 8), Edit("lora_alpha", 16)]
    fixed = edited_program(recipe, edits)
    found = replace(diagnoses.phi3(), recipe=recipe, fixed_recipe=fixed)
    assert found.applied
    plan = Plan.make(Path("train.py"), ".", True)
    diff = plan.with_diff(found).recipe_diff
    assert "+python train.py org/model -r 8" in diff and "lora_alpha=16" in diff
    assert {path.name for path in plan.write(found)} >= {"run.sh", "run.sh.bak", "train.py"}
    assert (tmp_path / "run.sh").read_text() == command.replace("16", "8")
    assert (tmp_path / "run.sh.bak").read_text() == command
    with pytest.raises(InputError, match="was changed while"):
        plan.write(found)


def test_a_command_of_a_framework_stays_its_own(tmp_path: Path) -> None:
    """``trl/scripts/sft.py`` sets up nothing itself: its arguments are TRL's."""
    text = "python trl/scripts/sft.py --model_name_or_path org/model --use_peft --lora_r 4\n"
    written(tmp_path, {"run.sh": text, "trl/scripts/sft.py": "import trl\n"})
    recipe = read_recipe(tmp_path / "run.sh")
    assert isinstance(recipe, Recipe) and recipe.set_up is not None and recipe.get("r") == 4


def test_a_script_that_stays_as_it_is_is_not_said_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {"train.py": _ARGPARSE, "run.sh": "python train.py org/model -r 16\n"})
    recipe = read_recipe("run.sh")
    fixed = edited_program(recipe, [Edit("r", 8)])
    found = replace(diagnoses.phi3(), recipe=recipe, fixed_recipe=fixed)
    plan = Plan.make(Path("train.py"), ".", True)
    assert plan.as_written(found).written_to[0] == "run.sh"
    names = {path.name for path in plan.write(found)}
    assert names >= {"run.sh", "run.sh.bak"} and not names & {"train.py", "train.py.bak"}
    assert (tmp_path / "train.py").read_text() == _ARGPARSE


@pytest.mark.parametrize("command", ["python gone.py", "python -u runs/gone.py --lr 1e-4 --a 1"])
def test_a_script_that_is_not_there_is_told(tmp_path: Path, command: str) -> None:
    """And its options are no keys of a recipe."""
    path = tmp_path / "run.sh"
    path.write_text(f"#!/bin/sh\n{command}\n")
    with pytest.raises(InputError, match=r"run\.sh:2: starts \S*gone\.py, which is not there"):
        lora_doctor.check(path, depth="static")
