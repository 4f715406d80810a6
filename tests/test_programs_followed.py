"""What a script computes before it trains: followed where the text says it, never guessed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.recipe.edit import Edit
from lora_doctor.recipe.program.edits import edited_program
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.program.toml_file import of_toml
from lora_doctor.static.program.units import Unit

_TRAIN = """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfig(r=8, target_modules=TARGETS))
"""


def read(tmp_path: Path, text: str, *arguments: str) -> Setup:
    path = tmp_path / "train.py"
    path.write_text(text, encoding="utf-8")
    return read_setup(path, None, arguments)


@pytest.mark.parametrize(
    ("before", "targets"),
    [
        ('TARGETS = [f"{name}_proj" for name in ("q", "v")]', ["q_proj", "v_proj"]),
        ('TARGETS = [n for n in ["q_proj", "lm_head"] if n != "lm_head"]', ["q_proj"]),
        ('TARGETS = ["%s_proj" % name for name in "q v".split()]', ["q_proj", "v_proj"]),
        ('TARGETS = []\nfor i in range(2):\n    TARGETS.append(f"layers.{i}.q_proj")',
         ["layers.0.q_proj", "layers.1.q_proj"]),
        ('TARGETS = ["q_proj"]\nTARGETS += ["v_proj"]', ["q_proj", "v_proj"]),
        ('TARGETS = {"q_proj", "lm_head"}\nTARGETS.discard("lm_head")\nTARGETS = list(TARGETS)',
         ["q_proj"]),
        ('match "small":\n    case "big":\n        TARGETS = ["o_proj"]\n'
         '    case "small" | "tiny":\n        TARGETS = ["q_proj"]', ["q_proj"]),
        ('by_kind = {"llama": ["q_proj"], "gpt2": ["c_attn"]}\nTARGETS = by_kind["llama"]',
         ["q_proj"]),
        ('TARGETS = []\nfor name in ["lm_head", "q_proj", "v_proj", "end", "o_proj"]:\n'
         '    if name == "lm_head":\n        continue\n'
         '    if name == "end":\n        break\n'
         '    TARGETS.append(name)', ["q_proj", "v_proj"]),
        ('def first(names):\n    for name in names:\n        if name != "lm_head":\n'
         '            return [name]\n    return []\nTARGETS = first(["lm_head", "q_proj"])',
         ["q_proj"]),
        ('TARGETS = ["q_proj", "k_proj"]\nTARGETS[1] = "v_proj"', ["q_proj", "v_proj"]),
        ('both = ("q_proj",)\none = both\nboth += ("v_proj",)\nTARGETS = list(one)', ["q_proj"]),
        ('given = {"targets": ["o_proj"]}\ndel given["targets"]\n'
         'TARGETS = given.get("targets", ["q_proj"])', ["q_proj"]),
        ('import os\ngiven = {"targets": ["q_proj"], "r": 8}\nif os.cpu_count() > 4:\n'
         '    given.update(r=16)\n    given.pop("bias", None)\nTARGETS = given["targets"]',
         ["q_proj"]),
        ('from types import SimpleNamespace\nTARGETS = SimpleNamespace(on=["q_proj"]).on',
         ["q_proj"]),
    ],
)  # fmt: skip
def test_a_list_that_is_computed_is_known(before: str, targets: list[str], tmp_path: Path) -> None:
    setup = read(tmp_path, f"{before}\n{_TRAIN}")
    assert setup.recipe.get("target_modules") == targets and not setup.asked


@pytest.mark.parametrize(
    "before",
    [
        # The usual helper of QLoRA scripts: what it finds only the model says.
        "import torch\n"
        "def find_all_linear_names(model):\n"
        "    names = set()\n"
        "    for name, module in model.named_modules():\n"
        "        if isinstance(module, torch.nn.Linear):\n"
        "            names.add(name.split('.')[-1])\n"
        "    if 'lm_head' in names:\n"
        "        names.remove('lm_head')\n"
        "    return list(names)\n"
        "import transformers\n"
        "TARGETS = find_all_linear_names(transformers.AutoModel.from_pretrained('org/model'))",
        'import os\nTARGETS = ["q_proj"]\nif os.cpu_count() > 4:\n    TARGETS.append("v_proj")',
        'TARGETS = ["q_proj"]\nfor line in open("names.txt"):\n    TARGETS.append(line.strip())',
        'TARGETS = ["q_proj", "v_proj"]\nTARGETS.insert(0, input())',
        'TARGETS = {"q_proj", "lm_head"}\nTARGETS -= {"lm_head"}',
        'TARGETS = ["q_proj", "lm_head"]\ndel TARGETS[1]',
        'import os\nTARGETS = []\nfor name in ["q_proj", "v_proj"]:\n'
        "    if os.path.exists(name):\n        continue\n    TARGETS.append(name)",
        'import os\nname = "q_proj"\nfor other in ["k_proj", "v_proj"]:\n'
        "    if os.path.exists(other):\n        name = other\n        break\nTARGETS = [name]",
        'import mine\ngiven = {"targets": ["q_proj"]}\ngiven.update(mine.load())\n'
        'TARGETS = given["targets"]',
        'import os\ngiven = {"targets": ["q_proj"]}\nif os.cpu_count() > 4:\n'
        '    given.update(targets=["v_proj"])\nTARGETS = given["targets"]',
        'given = {"targets": ["q_proj"]}\ngiven[input()] = ["v_proj"]\nTARGETS = given["targets"]',
        'given = {"targets": ["q_proj"]}\ngiven.clear()\nTARGETS = given.get("targets")',
        "import yaml\nTARGETS = yaml.safe_load(open('not-here.yaml'))['targets']",
        # What a function returns that is in no file here may be false.
        'from mine import *\nTARGETS = ["query"]\nif is_llama():\n    TARGETS = ["q_proj"]',
    ],
)
def test_a_list_that_only_the_run_knows_is_asked_for(before: str, tmp_path: Path) -> None:
    setup = read(tmp_path, f"{before}\n{_TRAIN}")
    assert "target_modules" not in setup.recipe.values
    assert [key for key, _ in setup.asked] == ["target_modules"]


@pytest.mark.parametrize(
    ("before", "line"),
    [
        ('NAMES = "q_proj,v_porj"\nTARGETS = NAMES.split(",")', 1),
        ('import argparse\np = argparse.ArgumentParser()\n'
         'p.add_argument("--targets", default="q_proj,v_porj")\n'
         'TARGETS = p.parse_args().targets.split(",")', 3),
    ],
    ids=["constant", "argument"],
)  # fmt: skip
def test_a_text_that_is_split_is_changed_as_a_text(before: str, line: int, tmp_path: Path) -> None:
    """The setting stays where it is, and an option of the command line goes on to count."""
    text = f"{before}\n{_TRAIN}"
    recipe = read(tmp_path, text).recipe
    assert recipe.places["target_modules"].line == line
    edited = edited_program(recipe, [Edit("target_modules", ["q_proj", "v_proj"])])
    assert edited.written is not None and edited.written.data is not None
    assert edited.written.data.decode() == text.replace("v_porj", "v_proj")


def test_a_number_that_a_loop_changes_is_not_guessed(tmp_path: Path) -> None:
    text = _TRAIN.replace("r=8, target_modules=TARGETS", "r=rank")
    setup = read(tmp_path, f"rank = 8\nwhile busy():\n    rank *= 2\n{text}")
    assert "r" not in setup.recipe.values and setup.asked[0][0] == "r"
    assert read(tmp_path, f"rank = 8\nrank *= 2\n{text}").recipe.get("r") == 16


def test_a_function_with_arguments_filled_in_is_called(tmp_path: Path) -> None:
    setup = read(
        tmp_path,
        "from functools import partial\n"
        + _TRAIN.replace(
            'AutoModelForCausalLM.from_pretrained("org/model")',
            'partial(AutoModelForCausalLM.from_pretrained, torch_dtype="float16")("org/model")',
        ).replace("TARGETS", '"all-linear"'),
    )
    assert (setup.model, setup.recipe.get("dtype")) == ("org/model", "float16")


_CONFIG = """\
# where it starts from
base: org/model
lora:
  rank: 16
  targets:
  - q_proj
  - v_proj
"""
_READS = """\
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
{load}
model = AutoModelForCausalLM.from_pretrained(cfg.base)
model = get_peft_model(model, LoraConfig(r=cfg.lora.rank, target_modules=list(cfg.lora.targets)))
"""


@pytest.mark.parametrize(
    "load",
    [
        "from omegaconf import OmegaConf\ncfg = OmegaConf.load('config.yaml')",
        "import yaml, munch\nwith open('config.yaml') as f:\n"
        "    cfg = munch.munchify(yaml.safe_load(f))",
        "import yaml\nfrom pathlib import Path\nfrom easydict import EasyDict as E\n"
        "cfg = E(yaml.load((Path(__file__).resolve().parent / 'config.yaml').read_text(), "
        "Loader=yaml.FullLoader))",
    ],
    ids=["omegaconf", "munch", "path"],
)
def test_a_file_of_settings_is_read_with_its_lines(load: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(_CONFIG, encoding="utf-8")
    setup = read(tmp_path, _READS.format(load=load))
    assert setup.model == "org/model" and not setup.asked
    assert setup.recipe.get("r") == 16
    places = {
        key: (Path(place.file).name, place.line) for key, place in setup.recipe.places.items()
    }
    assert places["r"] == ("config.yaml", 4) and places["target_modules"][1] == 6


def test_json_and_its_entries_are_read(tmp_path: Path) -> None:
    (tmp_path / "lora.json").write_text('{\n "r": 4,\n "target_modules": ["q_proj"]\n}\n')
    text = _TRAIN.replace("LoraConfig(r=8, target_modules=TARGETS)", "LoraConfig(**cfg)")
    setup = read(tmp_path, f"import json\ncfg = json.load(open('lora.json'))\n{text}")
    assert setup.recipe.get("r") == 4 and setup.recipe.places["r"].line == 2


_TOML = """\
# where it starts from
base = "org/model"
notes = \'\'\'
lora.rank = 99
\'\'\'
["lora"] # adapter
rank = 16  # small
"targets" = [
  "q_proj",
  "v_proj",
]
since = 2026-01-01
"""


@pytest.mark.parametrize(
    "load",
    [
        "import tomllib\nwith open('config.toml', 'rb') as f:\n    cfg = tomllib.load(f)",
        "import toml\ncfg = toml.load('config.toml')",
        "from pathlib import Path\nimport tomli as t\n"
        "cfg = t.loads(Path('config.toml').read_text())",
    ],
    ids=["tomllib", "toml", "tomli"],
)
def test_toml_is_read_with_its_lines(load: str, tmp_path: Path) -> None:
    """A text of several lines that looks like an entry is none."""
    (tmp_path / "config.toml").write_text(_TOML, encoding="utf-8")
    text = f"{load}\n" + _TRAIN.replace('"org/model"', 'cfg["base"]').replace(
        "r=8, target_modules=TARGETS",
        'r=cfg["lora"]["rank"], target_modules=cfg["lora"]["targets"]',
    )
    setup = read(tmp_path, text)
    assert setup.model == "org/model" and not setup.asked
    assert setup.recipe.get("r") == 16
    assert setup.recipe.get("target_modules") == ["q_proj", "v_proj"]
    places = {
        key: (Path(place.file).name, place.line) for key, place in setup.recipe.places.items()
    }
    assert places["r"] == ("config.toml", 7) and places["target_modules"] == ("config.toml", 8)


def test_toml_that_is_nested_too_deeply_is_not_read_for_long(tmp_path: Path) -> None:
    """``tomllib`` takes the square of the number of names in a key; dots in texts are no names."""
    unit = Unit("config.toml", f"a{'.a' * 50_000} = 1\n")
    start = time.process_time()
    assert of_toml(unit) is None and time.process_time() - start < 5
    dots = f"a = '{'.a' * 500}'  # {'.a' * 500}\nb = [{'1.5, ' * 500}]\nc.d = 1\n"
    assert of_toml(Unit("config.toml", dots)) is not None


@pytest.mark.parametrize(
    "text",
    ["a = \n", "[lora\n", "\x00", "x = " + "[" * 3000, "a." * 900 + "b = 1", "x = " + "9" * 5000],
)
def test_what_is_no_toml_is_asked_for(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    load = "import toml\ncfg = toml.load('config.toml')\n"
    setup = read(tmp_path, load + _TRAIN.replace('"org/model"', 'cfg["base"]'))
    assert setup.model is None and setup.asked


def test_the_config_of_hydra_is_put_together(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    (conf / "lora").mkdir(parents=True)
    (conf / "config.yaml").write_text("defaults:\n- lora: small\nbase: org/model\n")
    (conf / "lora" / "small.yaml").write_text("rank: 4\ntargets: [q_proj]\nalpha: ${lora.rank}\n")
    text = (
        "import hydra\nfrom peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForCausalLM\n"
        "@hydra.main(version_base=None, config_path='conf', config_name='config')\n"
        "def main(cfg):\n"
        "    model = AutoModelForCausalLM.from_pretrained(cfg.base)\n"
        "    get_peft_model(model, LoraConfig(r=cfg.lora.rank, target_modules=cfg.lora.targets))\n"
        "main()\n"
    )
    setup = read(tmp_path, text)
    assert (setup.model, setup.recipe.get("r")) == ("org/model", 4) and not setup.asked
    assert read(tmp_path, text, "lora.rank=32").recipe.get("r") == 32
    refers = text.replace("r=cfg.lora.rank", "r=cfg.lora.alpha")
    assert read(tmp_path, refers).asked[0][0] == "r", "what refers to another entry is asked for"


def test_the_loader_of_another_package_takes_its_own_arguments(tmp_path: Path) -> None:
    """Unsloth quantizes by ``load_in_4bit``, which transformers 5 does not know any more."""
    path = tmp_path / "train.py"
    path.write_text(
        "from unsloth import FastLanguageModel as Fast\n"
        "model, tokenizer = Fast.from_pretrained('org/model', load_in_4bit=True)\n"
        "model = Fast.get_peft_model(model, r=8, target_modules=['q_proj'])\n",
        encoding="utf-8",
    )
    assert lora_doctor.check(str(path), depth="static").findings == ()


@pytest.mark.parametrize(
    ("loaded", "adapts"),
    [
        ('PeftModel.from_pretrained(base, "out")', True),
        ('PeftModel.from_pretrained(base, "out", is_trainable=False)', True),
        ('AutoPeftModelForCausalLM.from_pretrained("out")', True),
        ('PeftModel.from_pretrained(base, "out", is_trainable=True)', False),
        ('PeftModel.from_pretrained(base, "out", "default", True)', False),
    ],
)
def test_an_adapter_that_is_tried_afterwards_is_not_the_one_that_trains(
    loaded: str, adapts: bool, tmp_path: Path
) -> None:
    """A loop of the user's own, and at its end the saved adapter on a fresh base model."""
    setup = read(
        tmp_path,
        f"""TARGETS = ["q_proj"]{_TRAIN}
from peft import AutoPeftModelForCausalLM, PeftModel
model.save_pretrained("out")
base = AutoModelForCausalLM.from_pretrained("org/model")
again = {loaded}
""",
    )
    assert setup.has_recipe is adapts
    assert setup.recipe.get("target_modules") == (["q_proj"] if adapts else None)


def test_rules_about_the_script_are_asked_where_model_is_given_beside_it(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        f"""import torch
TARGETS = ["q_proj"]{_TRAIN}
loss = torch.nan_to_num(model(**batch).loss, nan=0.0)
loss.backward()
""",
        encoding="utf-8",
    )
    found = lora_doctor.check("arch:llama", recipe=script, depth="static", select=("LD407",))
    (finding,) = found.findings
    assert (finding.rule, finding.location.line) == ("LD407", 9)
