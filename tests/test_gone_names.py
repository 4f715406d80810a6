"""Imports of a script that the installed libraries cannot satisfy, found before it is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_doctor.recipe.program.gone_names import GoneName, gone_names
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.static.installed.installed_names import importable

RECIPE = """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
"""
GONE = "from peft import no_such_function"


def gone(folder: Path, head: str) -> list[GoneName]:
    file = folder / "train.py"
    file.write_text(f"{head}\n{RECIPE}", encoding="utf-8")
    return list(gone_names(read_setup(file)))


def test_a_name_that_is_gone_is_told_at_its_line_with_what_python_will_say(tmp_path: Path) -> None:
    (found,) = gone(tmp_path, f"import os\n{GONE}")
    assert (found.place.line, found.package) == (2, "peft")
    assert found.message == "cannot import name 'no_such_function' from 'peft'"


def test_a_module_that_is_gone_is_told_as_python_does(tmp_path: Path) -> None:
    (found,) = gone(tmp_path, "from transformers.no_such_module import Trainer")
    assert found.message == "No module named 'transformers.no_such_module'"
    assert found.dotted == "transformers.no_such_module"


def test_an_attribute_of_a_module_is_told_as_python_does(tmp_path: Path) -> None:
    (found,) = gone(tmp_path, "import peft\npeft.no_such_function()")
    assert (found.message, found.raised) == (
        "module 'peft' has no attribute 'no_such_function'", "AttributeError",
    )  # fmt: skip


def test_the_name_that_replaced_it_is_proposed(tmp_path: Path) -> None:
    (found,) = gone(tmp_path, "from peft import prepare_model_for_kbits_training")
    assert found.now == "peft.prepare_model_for_kbit_training"


@pytest.mark.parametrize(
    "head",
    [
        f"try:\n    {GONE}\nexcept ImportError:\n    pass",
        f"import os\nif os.environ.get('OLD'):\n    {GONE}",
        f"import peft\nif hasattr(peft, 'no_such_function'):\n    {GONE}",
        f"from contextlib import suppress\nwith suppress(ImportError):\n    {GONE}",
        f"try:\n    {GONE} as made\nexcept ImportError:\n    made = None\nif made:\n    made()",
        f"def old():\n    {GONE}",
        f"try:\n    {GONE} as made\nexcept ImportError:\n"
        "    from peft import PeftModel as made\nmade.from_pretrained('a', 'b')",
        "import no_such_package.parts",
        "from .peft import no_such_function",
        "from transformers import *",
        "from transformers import AutoModelForCausalLM as Auto, TrainingArguments",
        "import transformers.utils.logging",
        "from transformers.trainer_utils import get_last_checkpoint",
    ],
)
def test_imports_that_may_not_run_and_those_that_work_are_no_finding(
    tmp_path: Path, head: str
) -> None:
    assert not gone(tmp_path, head)


def test_a_script_for_another_release_is_not_compared_with_this_one(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("peft==0.2.0\n", encoding="utf-8")
    assert not gone(tmp_path, GONE)


def test_a_cell_of_a_notebook_is_named(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "code", "source": source, "metadata": {}, "outputs": []}
        for source in ("!pip list", GONE, RECIPE)
    ]
    file = tmp_path / "train.ipynb"
    file.write_text(json.dumps({"cells": cells, "nbformat": 4, "metadata": {}}), encoding="utf-8")
    (found,) = gone_names(read_setup(file))
    assert found.place.file.endswith("train.ipynb:cell 2") and found.place.line == 1


def test_modules_that_a_package_finds_under_their_old_names_are_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sentence-transformers 6 keeps its old modules alive by a finder, in a file that its
    ``__init__.py`` imports."""
    package = tmp_path / "moved_modules"
    package.mkdir()
    (package / "__init__.py").write_text("from moved_modules.old import install\ninstall()\n")
    (package / "old.py").write_text(
        'import sys\nOLD = {"moved_modules.losses": "moved_modules.new"}\n'
        "def install():\n    sys.meta_path.insert(0, Finder())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert importable("moved_modules", "losses") == "unknown"
    assert importable("moved_modules.losses", "Any") == "unknown"
    assert importable("moved_modules", "no_such_module") == "gone"
