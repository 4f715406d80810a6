"""A script whose requirements ask for another release than the installed one: what that release
takes counts, as far as its source was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.prescription.write_fix import Plan
from lora_doctor.recipe.pinned import pins_beside
from lora_doctor.static.installed.api_tables import releases_of
from lora_doctor.static.installed.signatures import installed_version

_TRAIN = """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
args = TrainingArguments(
    output_dir="out",
    eval_strategy="no",  # as newer releases call it
)
Trainer(model=model, args=args, train_dataset=[]).train()
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is never asked for the models that the scripts name."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("requirements.txt", "torch\ntransformers==4.44.2  # x\npeft[all] >= 0.10, <0.14\n",
         [("transformers", "==4.44.2", 2), ("peft", ">=0.10,<0.14", 3)]),
        ("pyproject.toml", '[project]\nversion = "1"\ndependencies = ["transformers==4.44.2", '
         '\'trl ~= 0.9.6\']\n', [("transformers", "==4.44.2", 3), ("trl", "~=0.9.6", 3)]),
        ("pyproject.toml", '[tool.poetry.dependencies]\ntransformers = "^4.44"\n'
         'peft = {version = "0.12.0", extras=["x"]}\n',
         [("transformers", ">=4.44,<5", 2), ("peft", "==0.12.0", 3)]),
        ("uv.lock", '[[package]]\nname = "transformers"\nversion = "4.44.2"\n',
         [("transformers", "==4.44.2", 2)]),
        ("Pipfile", '[packages]\ntransformers = "==4.44.2"\ntrl = "*"\n',
         [("transformers", "==4.44.2", 2)]),
        ("Pipfile.lock", '{"default": {\n"transformers": {"version": "==4.44.2"}}}',
         [("transformers", "==4.44.2", 2)]),
        ("environment.yml", "dependencies:\n  - transformers=4.44\n  - pip:\n    - peft==0.12.0\n",
         [("peft", "==0.12.0", 4), ("transformers", "==4.44.*", 2)]),
        ("Dockerfile", "FROM x\nRUN pip install torch==2.3.0 \\\n  'transformers==4.44.2' && ls\n",
         [("torch", "==2.3.0", 2), ("transformers", "==4.44.2", 3)]),
        ("requirements.txt", "\x00[[[\n-e .\n==1.0\n", []),
        ("Pipfile.lock", "[[[[", []),
    ],
)  # fmt: skip
def test_pins_are_read_where_projects_keep_them(
    tmp_path: Path, name: str, text: str, found: list[Any]
) -> None:
    (tmp_path / name).write_text(text)
    pins = pins_beside(tmp_path, 0)
    assert [(pin.package, pin.specifier, pin.place.line) for pin in pins] == found


def test_a_lock_file_counts_before_what_it_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["transformers>=4"]\n')
    (tmp_path / "uv.lock").write_text('name = "transformers"\nversion = "4.44.2"\n')
    assert [pin.specifier for pin in pins_beside(tmp_path, 0)] == ["==4.44.2"]


@pytest.mark.parametrize(
    ("package", "name", "argument", "specifier", "taken"),
    [
        ("transformers", "TrainingArguments", "eval_strategy", "==4.40.2", False),
        ("transformers", "TrainingArguments", "eval_strategy", "==4.44.2", True),
        ("transformers", "TrainingArguments", "evaluation_strategy", "==4.40.2", True),
        ("transformers", "TrainingArguments", "evaluation_strategy", "==4.57.6", False),
        ("transformers", "Trainer", "processing_class", "==4.45.2", False),
        ("transformers", "Trainer", "processing_class", "==4.46.3", True),
        # Both sides of the boundary are allowed: nothing is said.
        ("transformers", "TrainingArguments", "evaluation_strategy", ">=4.40", None),
        # A release that was not read lies between two that agree.
        ("transformers", "TrainingArguments", "eval_strategy", "==4.44.1", True),
        # Before the first that was read; what every release takes; what none does.
        ("transformers", "TrainingArguments", "eval_strategy", "==3.0.0", None),
        ("transformers", "TrainingArguments", "output_dir", "==4.44.2", None),
        ("transformers", "TrainingArguments", "no_such_argument", "==4.44.2", None),
        ("trl", "SFTConfig", "max_length", "==0.12.2", False),
        ("trl", "SFTConfig", "max_length", "==0.20.0", True),
        ("trl", "SFTConfig", "max_seq_length", "==0.12.2", True),
        ("peft", "LoraConfig", "exclude_modules", "==0.12.0", False),
        ("peft", "LoraConfig", "exclude_modules", "==0.15.2", True),
    ],
)
def test_the_releases_say_what_they_take(
    package: str, name: str, argument: str, specifier: str, taken: bool | None
) -> None:
    releases = releases_of(package)
    assert releases is not None
    assert releases.takes(name, argument, specifier) is taken


def test_a_name_that_the_pinned_release_does_not_have_yet_is_found_and_renamed(
    tmp_path: Path,
) -> None:
    if installed_version("transformers") is None or _installed_is("4.40.2"):
        pytest.skip("the pinned release has to be another one than the installed one")
    (tmp_path / "requirements.txt").write_text("transformers==4.40.2\n")
    path = tmp_path / "train.py"
    path.write_text(_TRAIN)
    plan = Plan.make(str(path), str(tmp_path), write=True)
    diagnosis = plan.with_diff(lora_doctor.fix(str(path), depth="static"))
    plan.write(diagnosis)
    (finding,) = diagnosis.findings
    assert finding.rule == "LD523" and finding.location.line == 9
    assert "4.40.2" in finding.message and "not executed" in finding.proof.detail
    assert path.read_text() == _TRAIN.replace("eval_strategy", "evaluation_strategy")
    assert lora_doctor.check(str(path), depth="static").findings == ()


def test_a_name_that_the_pinned_release_has_is_no_finding(tmp_path: Path) -> None:
    """Though the installed one may have renamed it since."""
    if _installed_is("4.40.2"):
        pytest.skip("the pinned release has to be another one than the installed one")
    (tmp_path / "requirements.txt").write_text("transformers==4.40.2\n")
    path = tmp_path / "train.py"
    path.write_text(_TRAIN.replace("eval_strategy", "evaluation_strategy"))
    assert lora_doctor.check(str(path), depth="static").findings == ()


def _installed_is(version: str) -> bool:
    return installed_version("transformers") == version
