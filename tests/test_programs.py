"""Training scripts and notebooks as people write them: read, checked and mended at the place."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.errors import InputError
from lora_doctor.prescription.write_fix import Plan
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.results.diagnosis import Diagnosis
from tests.program_styles import NOTEBOOKS, SCRIPTS, Notebook, Style


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is never asked for the models that the scripts name."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def read(tmp_path: Path, text: str, *arguments: str) -> Setup:
    path = tmp_path / "train.py"
    path.write_bytes(text.encode("utf-8"))
    return read_setup(path, None, arguments)


def fix(path: Path) -> Diagnosis:
    """``lora-doctor fix PATH --apply`` for a script whose model cannot be had."""
    plan = Plan.make(str(path), str(path.parent), write=True)
    diagnosis = plan.with_diff(lora_doctor.fix(str(path), depth="static"))
    plan.write(diagnosis)
    return diagnosis


@pytest.mark.parametrize("style", SCRIPTS, ids=lambda style: style.name)
def test_a_broken_script_is_found_in_its_line_and_mended(style: Style, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(style.broken.encode("utf-8"))
    diagnosis = fix(path)
    found = {(one.rule, one.location.line) for one in diagnosis.findings}
    assert found == {(style.rule, style.line)}, [one.message for one in diagnosis.findings]
    assert not diagnosis.remaining
    assert path.read_bytes().decode("utf-8") == style.healthy
    assert (tmp_path / "train.py.bak").read_bytes() == style.broken.encode("utf-8")
    ast.parse(path.read_bytes())
    assert fix(path).findings == () and path.read_bytes().decode("utf-8") == style.healthy


@pytest.mark.parametrize("style", SCRIPTS, ids=lambda style: style.name)
def test_a_healthy_script_has_no_findings(style: Style, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(style.healthy.encode("utf-8"))
    assert lora_doctor.check(str(path), depth="static").findings == ()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda one: one.style.name)
def test_a_broken_notebook_is_found_in_its_cell_and_mended(
    notebook: Notebook, tmp_path: Path
) -> None:
    path = tmp_path / "train.ipynb"
    path.write_bytes(notebook.text(notebook.style.broken).encode("utf-8"))
    diagnosis = fix(path)
    cell, line = notebook.place()
    where = [(one.rule, str(one.location)) for one in diagnosis.findings]
    assert where == [(notebook.style.rule, f"{path.name}:cell {cell}:{line}")]
    assert json.loads(path.read_bytes())["nbformat"] == 4
    assert path.read_bytes().decode("utf-8") == notebook.text(notebook.style.healthy)
    before = path.read_bytes()
    assert fix(path).findings == () and path.read_bytes() == before


def test_every_key_has_the_place_where_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text("NAME = 'org/model'\nRANK = 4\n")
    text = (
        "import torch\n"
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForCausalLM as Auto, BitsAndBytesConfig\n"
        "from settings import NAME, RANK\n"
        "family = f'{NAME}-base'\n"
        "quantization = dict(load_in_4bit=True,\n"
        "                    bnb_4bit_compute_dtype=torch.bfloat16)\n"
        "def load(name, **options):\n"
        "    return Auto.from_pretrained(name, **options)\n"
        "model = load(family, torch_dtype=torch.bfloat16,\n"
        "             quantization_config=BitsAndBytesConfig(**quantization))\n"
        "targets = ['q_proj']\n"
        "targets += ['v_proj']\n"
        "config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets)\n"
        "config.lora_dropout = 0.1\n"
        "model = get_peft_model(model, config)\n"
    )
    setup = read(tmp_path, text)
    assert setup.model == "org/model-base" and not setup.asked
    assert setup.recipe.values == {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
        "lora_dropout": 0.1, "model_class": "AutoModelForCausalLM", "dtype": "bfloat16",
        "load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16",
    }  # fmt: skip
    lines = {key: (Path(place.file).name, place.line) for key, place in setup.recipe.places.items()}
    assert lines["r"] == ("settings.py", 2)
    assert lines["load_in_4bit"] == ("train.py", 6)
    assert lines["bnb_4bit_compute_dtype"] == ("train.py", 7)
    assert lines["dtype"] == ("train.py", 10)
    assert lines["target_modules"] == ("train.py", 12)
    assert lines["lora_dropout"] == ("train.py", 15)


_ASKS = """\
import argparse
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--rank", type=int, default=8)
args = parser.parse_args()
model = AutoModelForCausalLM.from_pretrained(args.model)
model = get_peft_model(model, LoraConfig(r=args.rank, target_modules=find_all(model)))
"""


_CHECKPOINTING = """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer

args = TrainingArguments("out", gradient_checkpointing=True)
model = AutoModelForCausalLM.from_pretrained("org/model")
other = AutoModelForCausalLM.from_pretrained("org/judge")
BEFORE
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
AFTER
TRAINER
"""
_ENABLED = "model.enable_input_require_grads()"
_HOOK = "model.get_input_embeddings().register_forward_hook(lambda m, i, out: out.requires_grad_())"
_IF = f'if hasattr(model, "enable_input_require_grads"):\n    {_ENABLED}\nelse:\n    {_HOOK}'


@pytest.mark.parametrize(
    ("before", "after", "trainer", "is_enabled"),
    [
        ("", "", "Trainer(model, args)", None),
        (_ENABLED, "", "Trainer(model, args)", True),
        ("", _ENABLED, "Trainer(model, args)", True),
        (_IF, "", "Trainer(model, args)", True),
        (_HOOK, "", "Trainer(model, args)", True),
        ("other.enable_input_require_grads()", "", "Trainer(model, args)", None),
        ("model.gradient_checkpointing_enable()", "", "Trainer(model, args)", True),
        ("", "model.gradient_checkpointing_enable()", "Trainer(model, args)", None),
        ("", "", 'DPOTrainer(model, args=DPOConfig("out", gradient_checkpointing=True))', True),
        (_ENABLED, "", 'Trainer(model, TrainingArguments("out"))', None),
    ],
    ids=["nothing", "before", "after", "if-there", "hook", "other-model", "peft", "too-late", "trl",
         "no-checkpointing"],
)  # fmt: skip
def test_who_makes_the_inputs_of_checkpointed_layers_need_gradients(
    before: str, after: str, trainer: str, is_enabled: bool | None, tmp_path: Path
) -> None:
    text = _CHECKPOINTING.replace("BEFORE", before).replace("AFTER", after)
    setup = read(tmp_path, text.replace("TRAINER", trainer))
    assert setup.recipe.get("enable_input_require_grads") is is_enabled


def test_what_a_script_does_not_say_is_asked_for_by_name_and_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(_ASKS)
    answer = lora_doctor.check(str(tmp_path / "train.py"))
    assert answer.verdict == "undetermined" and answer.undetermined is not None
    assert "`args.model`, line 6: pass `--model`" in answer.undetermined
    assert "`find_all(model)`, line 10 (target_modules): give --target-modules" in (
        answer.undetermined
    )
    assert "target_modules" not in answer.recipe.values


def test_an_argument_of_the_script_is_given_behind_two_dashes(tmp_path: Path) -> None:
    setup = read(tmp_path, _ASKS, "--model", "org/model", "--rank=16")
    assert setup.model == "org/model" and setup.recipe.values["r"] == 16
    assert setup.open_questions(frozenset({"target_modules"})) == []


def test_a_branch_that_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    text = _ASKS.replace("find_all(model)", "names").replace(
        "model = get_peft",
        "names = ['q_proj']\nif len(data) > 3:\n    names = ['v_proj']\nmodel = get_peft",
    )
    setup = read(tmp_path, text, "--model", "m")
    assert "target_modules" not in setup.recipe.values
    assert "depends on `len(data) > 3`" in setup.asked[0][1]


@pytest.mark.parametrize(
    "text",
    ["def f(:\n", "{" * 400, "x = " + "(" * 300, "\x00", "a = 1\n" * 200_000,
     "class A(A): pass\nA().f()\n", "x = ['a']\n" + "x = x + x\n" * 60,
     "x = 'ab'\n" + "x = f'{x}{x}'\n" * 60, "x = 'aa'\n" + "x = x.replace('a', x)\n" * 20,
     "def f(): return f()\nf()\n", "x = 2\n" + "x = x * x\n" * 200, "x = [0]\n" + "x += x\n" * 60,
     "lambda: (yield)\n", "import a.b.c as d\nfrom . import x\nfrom .. import *\n"],
    ids=range(14),
)  # fmt: skip
def test_no_script_ends_in_a_traceback(text: str, tmp_path: Path) -> None:
    try:
        read(tmp_path, text)
    except InputError as error:
        assert "train.py" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "text",
    ["{}", '{"cells": 3}', '{"cells": [3, null, {"cell_type": "code"}]}', "[" * 5000,
     '{"cells": [{"cell_type": "code", "source": [1]}]}', '{"cells": [], "metadata": [1]}',
     '{"cells": [{"cell_type": "code", "source": "x = ("}]}',
     '{"cells": [], "metadata": {"kernelspec": {"language": "R"}}}'],
    ids=range(8),
)  # fmt: skip
def test_no_notebook_ends_in_a_traceback(text: str, tmp_path: Path) -> None:
    path = tmp_path / "train.ipynb"
    path.write_text(text)
    try:
        read_setup(path)
    except InputError as error:
        assert "train.ipynb" in str(error) and "\n" not in str(error)


def test_a_script_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(SCRIPTS[0].broken)
    plan = Plan.make(str(path), str(tmp_path), write=True)
    diagnosis = lora_doctor.fix(str(path), depth="static")
    path.write_text("# mine\n" + SCRIPTS[0].broken)
    with pytest.raises(InputError, match="was changed while"):
        plan.write(diagnosis)
    assert path.read_text() == "# mine\n" + SCRIPTS[0].broken
    assert not (tmp_path / "train.py.bak").exists()


def test_a_notebook_for_another_release_is_not_held_against_the_installed_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "old.ipynb"
    notebook = Notebook(SCRIPTS[4], ("base =",), first="!pip install -q 'peft==0.0.1' torch")
    path.write_text(notebook.text(SCRIPTS[4].broken))
    found = lora_doctor.check(str(path), depth="static")
    assert found.findings == ()
    pinned, unread = (note.text for note in found.notes)
    assert pinned.partition(";")[0] == f"{path}:cell 2:1 asks for peft==0.0.1"
    assert unread.startswith("only the script was read: org/model")


def test_a_question_about_the_gpu_is_said_and_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(
        "import torch\nfrom transformers import TrainingArguments\n"
        "bf16 = torch.cuda.is_bf16_supported()\n"
        "args = TrainingArguments('out', bf16=bf16, fp16=not bf16)\n"
    )
    found = lora_doctor.check(str(path), depth="static")
    assert found.recipe.values["bf16"] is True and found.recipe.values["fp16"] is False
    assert [note.text for note in found.notes] == [
        "read as on a GPU with bfloat16: `torch.cuda.is_bf16_supported()`, line 3"
    ]


@pytest.mark.parametrize(
    ("parser", "rate", "impossible"),
    [
        ('add_argument("--lr", default="3e-4")', None, "3e-4"),
        ('add_argument("--lr", type=float, default="3e-4")', 3e-4, None),
    ],
)
def test_a_default_of_argparse_is_converted_as_argparse_does(
    tmp_path: Path, parser: str, rate: float | None, impossible: str | None
) -> None:
    """It converts a default that is a text, and without a type leaves it one."""
    file = tmp_path / "train.py"
    file.write_text(
        "import argparse\nfrom transformers import Trainer, TrainingArguments\n"
        f"p = argparse.ArgumentParser()\np.{parser}\na = p.parse_args()\n"
        "Trainer(None, TrainingArguments('out', learning_rate=a.lr))\n"
    )
    recipe = read_setup(file).recipe
    assert recipe.get("learning_rate") == rate
    assert [one.value for one in recipe.impossible] == ([impossible] if impossible else [])


def test_a_number_without_a_point_is_a_text_of_pyyaml(tmp_path: Path) -> None:
    """ruamel.yaml reads a number there, PyYAML does not: AdamW is given a text."""
    (tmp_path / "c.yaml").write_text("a: 2e-4\nb: 2.0e-4\n")
    file = tmp_path / "train.py"
    file.write_text(
        "import yaml\nfrom transformers import Trainer, TrainingArguments\n"
        f"c = yaml.safe_load(open({str(tmp_path / 'c.yaml')!r}))\n"
        "Trainer(None, TrainingArguments('out', learning_rate=c['a'], warmup_ratio=c['b']))\n"
    )
    recipe = read_setup(file).recipe
    assert [(one.key, one.value) for one in recipe.impossible] == [("learning_rate", "2e-4")]
    assert recipe.get("warmup_ratio") == 2e-4
