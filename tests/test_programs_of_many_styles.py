"""Scripts in styles of public repositories: what they ask of Python, of the installed releases and
of their own classes is answered, and never guessed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.signatures import installed_version

_TRAIN = """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfig(r=8, target_modules=TARGETS))
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is never asked for the models that the scripts name."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def read(tmp_path: Path, text: str, *arguments: str) -> Setup:
    path = tmp_path / "train.py"
    path.write_text(text, encoding="utf-8")
    return read_setup(path, None, arguments)


_FAMILY = """
import sys
def targets(family):
    match family:
        case "gpt2":
            return ["c_attn"]
        case "llama" | "mistral":
            return ["q_proj"]
        case _:
            raise SystemExit(family)
TARGETS = targets(sys.argv[1] if len(sys.argv) > 1 else "llama")
"""
_NESTED = """
from dataclasses import asdict, dataclass, field
@dataclass
class Lora:
    targets: tuple = ("q_proj",)
@dataclass
class Config:
    name: str = "x"
    lora: Lora = field(default_factory=Lora)
config = Config()
made = asdict(config)["lora"]
made["other"] = 1
TARGETS = list(made["targets"])
"""


@pytest.mark.parametrize(
    ("before", "targets"),
    [
        (_FAMILY, ["q_proj"]),
        (_NESTED, ["q_proj"]),
        ('class C: wanted = ["q_proj"]; other = 2\nTARGETS = C.wanted', ["q_proj"]),
        ('import sys\nNEW = sys.version_info >= (3, 8)\nTARGETS = ["q_proj"] if NEW else ["query"]',
         ["q_proj"]),
        ('class C:\n    rank, wanted = 1, ["q_proj"]\nTARGETS = C.wanted', ["q_proj"]),
        ('class C:\n    class lora:\n        wanted = ["q_proj"]\nTARGETS = C.lora.wanted',
         ["q_proj"]),
        ('class C:\n    if True:\n        wanted = ["q_proj"]\nTARGETS = C.wanted', ["q_proj"]),
        ('class C:\n    wanted = ["q_proj"]\n    wanted += ["v_proj"]\nTARGETS = C.wanted',
         ["q_proj", "v_proj"]),
        ("import sys\n"
         f'TARGETS = ["q_proj"] if sys.platform == "{sys.platform}" else ["query"]', ["q_proj"]),
        ("import transformers\nfrom packaging import version\n"
         'NEW = version.parse(transformers.__version__) >= version.parse("4.1")\n'
         'TARGETS = ["q_proj"] if NEW else ["query"]', ["q_proj"]),
        ("import importlib.util\n"
         'HAS = importlib.util.find_spec("no_such_package_here") is not None\n'
         'TARGETS = ["query"] if HAS else ["q_proj"]', ["q_proj"]),
        ("from typing import TYPE_CHECKING\nTARGETS = ['q_proj']\n"
         "if TYPE_CHECKING:\n    TARGETS = ['query']", ["q_proj"]),
        ("class A:\n    targets = ['query']\na = A()\nsetattr(a, 'targets', ['q_proj'])\n"
         "TARGETS = a.targets", ["q_proj"]),
        ("TARGETS = ['q_proj'] if 1 << 2 == 4 and 2 ** 3 == 8 else ['query']", ["q_proj"]),
    ],
)  # fmt: skip
def test_what_a_script_asks_of_python_is_answered(
    tmp_path: Path, before: str, targets: list[str]
) -> None:
    if "transformers" in before and installed_version("transformers") is None:
        pytest.skip("asks for the installed release of transformers")
    setup = read(tmp_path, before + _TRAIN)
    assert setup.recipe.get("target_modules") == targets, setup.asked


def test_the_words_of_the_command_line_are_in_sys_argv(tmp_path: Path) -> None:
    setup = read(tmp_path, _FAMILY + _TRAIN, "gpt2")
    assert setup.recipe.get("target_modules") == ["c_attn"]


@pytest.mark.parametrize(
    "before",
    [
        # The name of a library's constant is no text that could be compared or indexed.
        'import lib\nTARGETS = ["q_proj"] if lib.KIND == "llama" else ["query"]',
        "import lib\nTARGETS = lib.names[2]",
        'import lib\nTARGETS = "".join(lib.names)',
        # Which case is taken is not known, so that neither is what follows.
        'import os\nmatch os.cpu_count():\n    case 1:\n        TARGETS = ["q_proj"]\n'
        '    case _:\n        TARGETS = ["query"]',
        # An attribute that is set under a condition that is not known.
        'import os\nclass A:\n    pass\na = A()\na.t = ["q_proj"]\n'
        'if os.cpu_count() > 4:\n    a.t = ["query"]\nTARGETS = a.t',
        'import os\nclass A:\n    t = ["q_proj"]\n    if os.cpu_count() > 4:\n        t = ["x"]\n'
        "TARGETS = A.t",
        'import os\nclass A:\n    t = ["q_proj"]\na = A()\na.t = ["q_proj"]\n'
        "setattr(a, os.uname().sysname, 3)\nTARGETS = a.t",
    ],
)
def test_what_the_text_does_not_say_is_asked_for(tmp_path: Path, before: str) -> None:
    setup = read(tmp_path, before + _TRAIN)
    assert "target_modules" not in setup.recipe.values, setup.recipe.values
    assert any(key == "target_modules" for key, _ in setup.asked)


def test_behind_cases_that_all_leave_nothing_is_reached(tmp_path: Path) -> None:
    """``case _`` that returns leaves the function, whatever the others do."""
    setup = read(
        tmp_path,
        "import os\ndef targets():\n    match os.cpu_count():\n        case 1:\n"
        "            return ['q_proj']\n        case _:\n            return ['q_proj']\n"
        "    return ['query']\nTARGETS = targets()\n" + _TRAIN,
    )
    assert setup.recipe.get("target_modules") == ["q_proj"], setup.asked


def found_in(tmp_path: Path, text: str) -> list[Any]:
    path = tmp_path / "train.py"
    path.write_text(text, encoding="utf-8")
    return [
        finding
        for finding in lora_doctor.check(str(path), depth="static").findings
        if finding.rule == "LD526"
    ]


def test_names_that_no_release_has_are_found_where_they_are_imported(tmp_path: Path) -> None:
    text = (
        "import peft\nfrom peft import (\n    LoraConfig,\n    NoSuchThing,\n)\n"
        "from peft.no_such_module import anything\n"
        "model = peft.get_peft_model(None, peft.LoraConfigs(r=8))\n"
    )
    found = {(one.location.line, one.message.split("`")[1]) for one in found_in(tmp_path, text)}
    assert found == {
        (4, "peft.NoSuchThing"),
        (6, "peft.no_such_module"),
        (7, "peft.LoraConfigs"),
    }


def test_an_import_that_may_fail_is_no_finding(tmp_path: Path) -> None:
    """Guarded, never reached, not known to be reached, or of a package that is not looked at."""
    text = (
        "import os\nfrom typing import TYPE_CHECKING\nimport peft, transformers\n"
        "try:\n    from transformers import NoSuchThing\nexcept ImportError:\n"
        "    NoSuchThing = None\n"
        "try:\n    peft.no_such_function()\nexcept AttributeError:\n    pass\n"
        "if os.cpu_count() > 4:\n    from peft import NoSuchOther\n"
        "if TYPE_CHECKING:\n    from transformers import NoSuchType\n"
        "def never():\n    from transformers import NoSuchFunction\n"
        "import no_such_package_here\n" + _TRAIN.replace("TARGETS", "['q_proj']")
    )
    assert not found_in(tmp_path, text)


def test_a_key_of_an_unpacked_dictionary_is_renamed_where_it_stands(tmp_path: Path) -> None:
    """Unless something else in the program reads it by that name."""
    from lora_doctor.prescription.write_fix import Plan

    text = 'LORA = {"r": 8, "lora_alfa": 16}  # mine\n' + _TRAIN.replace("r=8", "**LORA").replace(
        "TARGETS", "['q_proj']"
    )
    path = tmp_path / "train.py"
    for more, renamed in (("", True), ('print(LORA["lora_alfa"])\n', False)):
        path.write_text(text + more)
        plan = Plan.make(str(path), str(tmp_path), write=True)
        diagnosis = plan.with_diff(lora_doctor.fix(str(path), depth="static"))
        plan.write(diagnosis)
        assert [one.rule for one in diagnosis.findings] == ["LD523"]
        expected = text.replace("lora_alfa", "lora_alpha") if renamed else text
        assert path.read_text() == expected + more


_HEIRS = """
from dataclasses import dataclass
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


class Weighted(Trainer):
    def __init__(self, *args, class_weights=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.class_weights = class_weights


@dataclass
class Arguments(TrainingArguments):
    lora_rank: int = 8


model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
args = Arguments(output_dir="out", lora_rank=4)
Weighted(model=model, args=args, train_dataset=[], class_weights=[1.0, 2.0]).train()
"""


def test_an_heir_takes_the_arguments_of_its_own(tmp_path: Path) -> None:
    """A Trainer with a constructor of its own, arguments with fields of their own; a mistake in
    what the library's class takes is still found."""
    path = tmp_path / "train.py"
    path.write_text(_HEIRS)
    assert lora_doctor.check(str(path), depth="static").findings == ()
    path.write_text(_HEIRS.replace("lora_rank=4", "lora_rank=4, max_step=3"))
    (finding,) = lora_doctor.check(str(path), depth="static").findings
    assert finding.rule == "LD523" and "`max_step`" in finding.message


@pytest.mark.parametrize(
    ("constructor", "found"),
    [
        ("super().__init__(*args, **kwargs)", True),
        ("self.name = kwargs.pop('no_such', 1)\n        super().__init__(*args, **kwargs)", False),
        ("super().__init__(*args)", False),
        ("self.setup(**kwargs)", False),
    ],
)
def test_a_constructor_that_hands_the_rest_on_takes_what_the_library_takes(
    tmp_path: Path, constructor: str, found: bool
) -> None:
    """Unless it takes something out of that."""
    text = _HEIRS.replace("super().__init__(*args, **kwargs)", constructor)
    text = text.replace("train_dataset=[], class", "train_dataset=[], no_such=1, class")
    (tmp_path / "train.py").write_text(text)
    findings = lora_doctor.check(str(tmp_path / "train.py"), depth="static").findings
    assert [one.rule for one in findings if "`no_such`" in one.message] == ["LD523"] * found


def test_a_constant_of_a_file_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    """Its name is no value: ``RANK`` is no rank."""
    text = "from nowhere.settings import RANK, TARGETS\n" + _TRAIN.replace("r=8", "r=RANK")
    setup = read(tmp_path, text)
    assert not {"r", "target_modules"} & set(setup.recipe.values)
    assert {"r", "target_modules"} <= {key for key, _ in setup.asked}


def test_modules_of_the_repository_are_found_from_a_folder_in_it(tmp_path: Path) -> None:
    """As ``python -m scripts.train`` finds them from its root."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "settings_of_mine").mkdir()
    (tmp_path / "settings_of_mine" / "lora.py").write_text("TARGETS = ['q_proj']\n")
    (tmp_path / "scripts").mkdir()
    imports = "import __main__\nfrom settings_of_mine.lora import TARGETS\n"
    setup = read(tmp_path / "scripts", imports + _TRAIN)
    assert setup.recipe.get("target_modules") == ["q_proj"], setup.asked


def test_an_adapter_that_was_merged_is_not_the_one_that_trains(tmp_path: Path) -> None:
    text = _TRAIN.replace("TARGETS", '["q_proj"]').replace(
        "model = get_peft_model",
        'model = PeftModel.from_pretrained(model, "first").merge_and_unload()\n'
        "model = get_peft_model",
    )
    text += "Trainer(model=model, train_dataset=[]).train()\n"
    text = "from peft import PeftModel\nfrom transformers import Trainer\n" + text
    assert read(tmp_path, text).recipe.get("target_modules") == ["q_proj"]


def test_a_loop_that_trains_is_told_to_be_read_for_its_first_round(tmp_path: Path) -> None:
    """The others may have other settings, of which nothing is said."""
    body = _TRAIN.replace("TARGETS", "['q_proj']").replace("r=8", "r=rank").strip().splitlines()
    text = "for rank in [4, 8, 16]:\n" + "\n".join(f"    {line}" for line in body) + "\n"
    setup = read(tmp_path, text)
    assert setup.recipe.get("r") == 4
    diagnosis = lora_doctor.check(str(tmp_path / "train.py"), depth="static")
    assert any("first of 3 rounds" in note.text for note in diagnosis.notes)
    epochs = "for epoch in range(3):\n    model(1).loss.backward()\n"
    epoch = read(tmp_path, _TRAIN.replace("TARGETS", "['q_proj']") + epochs)
    assert epoch.recipe.written is not None and not epoch.recipe.written.first_rounds
    once = read(tmp_path, text.replace("[4, 8, 16]", "[4]"))
    assert once.recipe.written is not None and not once.recipe.written.first_rounds
