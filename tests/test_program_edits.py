"""What is written into scripts: one value changes at its place, all else stays byte for byte."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lora_doctor
from lora_doctor.errors import InputError
from lora_doctor.prescription.write_fix import Plan
from lora_doctor.recipe.edit import REMOVE, Edit
from lora_doctor.recipe.program.edits import edited_program, program_holds
from lora_doctor.recipe.program.read_setup import read_setup
from lora_doctor.sandbox.worker import Worker
from tests.program_styles import NOTEBOOKS


@dataclass(frozen=True)
class Layout:
    """How a script is laid out: 2304 ways."""

    newline: str
    indent: str
    quote: str
    equal: str
    comment: str
    lines: bool
    comma: bool
    form: str
    kwargs: bool
    bom: bool

    def text(self) -> str:
        q, e, i = self.quote, self.equal, self.indent
        arguments = [
            f"r{e}8", f"target_modules{e}[{q}q_proj{q}, {q}v_proj{q}]", f"lora_dropout{e}0.05",
            f"task_type{e}TaskType.CAUSAL_LM",
        ]  # fmt: skip
        if self.kwargs:
            arguments = [arguments[0], "**OTHERS"]
        if self.lines:
            comma = "," if self.comma else ""
            ends = [f",  # {self.comment}"] * (len(arguments) - 1) + [f"{comma}  # {self.comment}"]
            inner = [f"{i}{i}{one}{end}" for one, end in zip(arguments, ends, strict=True)]
            call = ["LoraConfig(", *inner, f"{i})"]
        else:
            call = [f"LoraConfig({', '.join(arguments)})  # {self.comment}"]
        body = [
            f"model = AutoModelForCausalLM.from_pretrained({q}org/model{q}, torch_dtype{e}"
            f"torch.float16)  # {self.comment}",
            f"config = {call[0]}",
            *(line.removeprefix(i) for line in call[1:]),
            "model = get_peft_model(model, config)",
        ]
        head = [
            f"# {self.comment}", "import torch", "from peft import *",
            "from transformers import AutoModelForCausalLM", "",
            f"OTHERS = {{{q}target_modules{q}: [{q}q_proj{q}, {q}v_proj{q}], "
            f"{q}lora_dropout{q}: 0.05, {q}task_type{q}: TaskType.CAUSAL_LM}}", "",
        ]  # fmt: skip
        return self.newline.join([*head, *self._formed(body)]) + self.newline

    def _formed(self, body: list[str]) -> list[str]:
        i = self.indent
        inner = [f"{i}{line}" for line in body]
        if self.form == "function":
            return ["def main():", *inner, "", "main()"]
        if self.form == "decorated":
            return [
                "def same(f): return f",
                "@same",
                "def main(",
                f"{i}x=1,",
                "):",
                *inner,
                "main()",
            ]
        if self.form == "class":
            deeper = [f"{i}{line}" for line in inner]
            return ["class Run:", f"{i}def go(self):", *deeper, "Run().go()"]
        return body


LAYOUTS = st.builds(
    Layout,
    newline=st.sampled_from(["\n", "\r\n"]),
    indent=st.sampled_from(["    ", "  ", "\t"]),
    quote=st.sampled_from(["'", '"']),
    equal=st.sampled_from(["=", " = "]),
    comment=st.sampled_from(["größer als 漢字", "r = 8, \"'( #", "🙂"]),
    lines=st.booleans(),
    comma=st.booleans(),
    form=st.sampled_from(["plain", "function", "decorated", "class"]),
    kwargs=st.booleans(),
    bom=st.booleans(),
)
EDITS = st.sampled_from(
    [
        Edit("r", 16),
        Edit("target_modules", ["q_proj", "k_proj"]),
        Edit("target_modules", ["v_proj"]),
        Edit("target_modules", "all-linear"),
        Edit("lora_dropout", 0.0),
        Edit("task_type", "SEQ_CLS"),
        Edit("dtype", "bfloat16"),
        Edit("lora_alpha", 32),
        Edit("attn_implementation", "eager"),
        Edit("load_in_4bit", True),
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(layout=LAYOUTS, edit=EDITS)
def test_an_edit_changes_its_value_and_nothing_else(
    tmp_path: Path, layout: Layout, edit: Edit
) -> None:
    path = tmp_path / "train.py"
    before = (b"\xef\xbb\xbf" if layout.bom else b"") + layout.text().encode("utf-8")
    path.write_bytes(before)
    recipe = read_setup(path).recipe
    assert program_holds(recipe, edit)
    after = edited_program(recipe, [edit])
    assert after.written is not None and after.written.data is not None
    assert after.values == {**recipe.values, edit.key: edit.value}
    text = after.written.data.decode("utf-8-sig")
    ast.parse(text)
    assert after.written.data.startswith(b"\xef\xbb\xbf") == layout.bom
    assert (text.count("\r\n") == text.count("\n")) == (layout.newline == "\r\n")
    old, new = before.decode("utf-8-sig").splitlines(), text.splitlines()
    kept = [line for line in old if line in new]
    assert len(old) - len(kept) <= 1  # the line of the value
    assert len(new) - len(kept) <= 2  # and an import
    assert edited_program(after, [edit]).written == after.written


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda one: one.style.name)
def test_an_edit_of_a_notebook_leaves_every_other_cell_alone(notebook: Any, tmp_path: Path) -> None:
    path = tmp_path / "train.ipynb"
    path.write_bytes(notebook.text(notebook.style.healthy).encode("utf-8"))
    recipe = read_setup(path).recipe
    if "r" not in recipe.values:
        pytest.skip("no adapter is put on there")
    after = edited_program(recipe, [Edit("r", 128)])
    assert after.written is not None and after.written.data is not None
    changed = [
        (one, other)
        for one, other in zip(
            path.read_bytes().splitlines(), after.written.data.splitlines(), strict=True
        )
        if one != other
    ]
    assert len(changed) == 1 and b"128" in changed[0][1]
    old, new = json.loads(path.read_bytes()), json.loads(after.written.data)
    assert [cell.get("outputs") for cell in old["cells"]] == [
        cell.get("outputs") for cell in new["cells"]
    ]
    assert old["metadata"] == new["metadata"]


def test_a_value_that_others_read_is_changed_at_the_call(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForCausalLM\n"
        "RANK = 8\n"
        "model = AutoModelForCausalLM.from_pretrained('org/model')\n"
        "model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK * 2))\n"
    )
    after = edited_program(read_setup(path).recipe, [Edit("r", 4)])
    assert after.written is not None and after.written.data is not None
    assert b"RANK = 8\n" in after.written.data
    assert b"LoraConfig(r=4, lora_alpha=RANK * 2)" in after.written.data


#: An argument that is given but sets nothing, the edit, and the text of the call after it.
_SETS_NOTHING = (
    ("modules_to_save=None", "modules_to_save", ["score"], 'modules_to_save=["score"]'),
    ("torch_dtype=None", "dtype", "bfloat16", "torch_dtype=torch.bfloat16"),
    ("quantization_config=None", "load_in_4bit", True,
     "quantization_config=BitsAndBytesConfig(load_in_4bit=True)"),
)  # fmt: skip


@pytest.mark.parametrize(("before", "key", "value", "after"), _SETS_NOTHING, ids=lambda one: one)
def test_an_argument_that_is_none_is_set_and_not_given_twice(
    before: str, key: str, value: Any, after: str, tmp_path: Path
) -> None:
    path = tmp_path / "train.py"
    loading, adapter = ("", before) if key == "modules_to_save" else (f", {before}", "r=8")
    path.write_text(
        "import torch\n"
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained('org/model'{loading})\n"
        f"model = get_peft_model(model, LoraConfig({adapter}))\n"
    )
    edited = edited_program(read_setup(path).recipe, [Edit(key, value)])
    assert edited.written is not None and edited.written.data is not None
    assert after in edited.written.data.decode()
    assert edited.get(key) == value


def test_an_argument_that_a_branch_leaves_none_is_set_in_that_branch(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(
        "import sys\n"
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "save = ['score', 'norm'] if '--norm' in sys.argv else None\n"
        "model = AutoModelForSequenceClassification.from_pretrained('org/model')\n"
        "model = get_peft_model(model, LoraConfig(r=8, modules_to_save=save))\n"
    )
    edited = edited_program(read_setup(path).recipe, [Edit("modules_to_save", ["score"])])
    assert edited.written is not None and edited.written.data is not None
    assert b"if '--norm' in sys.argv else [\"score\"]\n" in edited.written.data


def test_an_argument_whose_value_is_not_known_is_no_place_for_an_edit(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('org/model')\n"
        "model = get_peft_model(model, LoraConfig(r=8, modules_to_save=chosen()))\n"
    )
    assert not program_holds(read_setup(path).recipe, Edit("modules_to_save", ["score"]))


@pytest.mark.parametrize("old", ["TaskType.SEQ_CLS", "peft.TaskType.SEQ_CLS", "'SEQ_CLS'"])
@pytest.mark.parametrize("value", [None, "CAUSAL_LM"])
def test_a_task_type_is_another_one_or_none(old: str, value: str | None, tmp_path: Path) -> None:
    """None is no member of `TaskType`."""
    path = tmp_path / "train.py"
    path.write_text(
        "import peft\n"
        "from peft import LoraConfig, TaskType, get_peft_model\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('org/model')\n"
        f"model = get_peft_model(model, LoraConfig(r=8, task_type={old}, lora_alpha=8))\n"
    )
    edited = edited_program(read_setup(path).recipe, [Edit("task_type", value)])
    assert edited.written is not None and edited.written.data is not None
    new = old.replace("SEQ_CLS", value) if value else "None"
    assert edited.written.data == path.read_bytes().replace(old.encode(), new.encode())


_TINY = (
    ("constant", "TARGETS = ['query_key_value']\n", "TARGETS", 3),
    ("argument", "", '["query_key_value"]', 5),
    ("dictionary", "LORA = dict(target_modules=['query_key_value'])\n", None, 3),
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head", "value", "line"), _TINY, ids=lambda one: str(one)[:9])
def test_a_script_trains_after_its_fix(
    name: str, head: str, value: str | None, line: int, tmp_path: Path, worker: Worker
) -> None:
    """The model beside the script is shrunk and trained, the script itself is never run."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128,
    }  # fmt: skip
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config))
    given_by = f"target_modules={value}" if value is not None else "**LORA"
    path = tmp_path / "train.py"
    path.write_text(
        "from transformers import AutoModelForCausalLM\n"
        "from peft import LoraConfig, get_peft_model\n"
        f"{head}"
        'model = AutoModelForCausalLM.from_pretrained("./llama")\n'
        f"config = LoraConfig(r=8, {given_by}, task_type='CAUSAL_LM')\n"
        "model = get_peft_model(model, config)\n"
        "raise SystemExit('was run')\n"
    )
    plan = Plan.make(str(path), str(tmp_path), write=True)
    diagnosis = lora_doctor.fix(str(path), worker=worker)
    (finding,) = diagnosis.findings
    assert finding.rule == "LD201"
    place = 5 - (not head) if name == "argument" else line
    assert finding.written == f"{path}:{place}"
    assert diagnosis.after is not None and diagnosis.after.outcome == "passed"
    plan.write(diagnosis)
    again = lora_doctor.check(str(path), worker=worker)
    assert again.verdict == "healthy" and "q_proj" in path.read_text()


_PREFIX = """\
import peft
from transformers import AutoModelForCausalLM

config = peft.PrefixTuningConfig(
    prefix_projection=False,
    task_type=peft.TaskType.CAUSAL_LM,  # the task
    num_virtual_tokens=20,
)
model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained("org/model"), config)
"""
_AS_LORA = """\
import peft
from transformers import AutoModelForCausalLM

config = peft.LoraConfig(
    task_type=peft.TaskType.CAUSAL_LM,  # the task
    target_modules=["q_proj", "v_proj"],
)
model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained("org/model"), config)
"""


_ON_ONE_LINE = """\
from peft import PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

config = PrefixTuningConfig(num_virtual_tokens = 20, prefix_projection = False)
model = get_peft_model(AutoModelForCausalLM.from_pretrained("org/model"), config)
"""
_IMPORTED = """\
from peft import PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
from peft import LoraConfig

config = LoraConfig(target_modules = ["q_proj", "v_proj"])
model = get_peft_model(AutoModelForCausalLM.from_pretrained("org/model"), config)
"""


@pytest.mark.parametrize(
    ("before", "after"), [(_PREFIX, _AS_LORA), (_ON_ONE_LINE, _IMPORTED)], ids=["lines", "one line"]
)
def test_an_adapter_of_another_kind_is_another_config(
    tmp_path: Path, before: str, after: str
) -> None:
    """LD506 offers LoRA instead of a prompt: its class, its arguments, its import."""
    path = tmp_path / "train.py"
    path.write_text(before)
    recipe = read_setup(path).recipe
    gone = ("num_virtual_tokens", "prefix_projection")
    edits = [Edit("peft_type", "LORA"), *(Edit(key, REMOVE) for key in gone)]
    edits.append(Edit("target_modules", ["q_proj", "v_proj"]))
    assert all(program_holds(recipe, edit) for edit in edits)
    edited = edited_program(recipe, edits)
    assert edited.written is not None and edited.written.data is not None
    assert edited.written.data.decode() == after
    assert edited.get("peft_type") == "LORA" and edited.get("target_modules") == [
        "q_proj",
        "v_proj",
    ]


_OF_A_MODULE = """\
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
IMPORT

model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfig(r=8, target_modules=TARGETS))
"""
_PARSED = """\
from transformers import HfArgumentParser
from settings import Arguments

(args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
print(args.targets)"""
_FIELDS = """\
from dataclasses import dataclass, field


@dataclass
class Arguments:
    # which layers
    targets: list[str] = field(default_factory=lambda: ["query", "v_proj"])
"""
_MADE = """\
from peft import LoraConfig


def lora(rank=8):
    return LoraConfig(r=rank, target_modules=["query", "v_proj"])  # attention
"""


@pytest.mark.parametrize(
    ("imported", "read", "settings_text"),
    [
        ("from settings import *", "TARGETS", 'TARGETS = ["query", "v_proj"]\r\nRANK = 8\r\n'),
        ("import settings as s", "s.TARGETS", "TARGETS = 'query,v_proj'.split(',')  # größer\n"),
        (_PARSED, "args.targets", _FIELDS),
        ("from settings import lora", "", _MADE),
    ],
)
def test_a_value_is_changed_in_the_module_that_has_it(
    tmp_path: Path, imported: str, read: str, settings_text: str
) -> None:
    """And not written over the name by which the script reads it, which would then do nothing. A
    module that another script imports too stays as it is."""
    script = tmp_path / "train.py"
    text = _OF_A_MODULE.replace("IMPORT", imported).replace("TARGETS", read)
    if not read:
        text = text.replace("LoraConfig(r=8, target_modules=)", "lora()")
    beside = tmp_path / "settings.py"
    script.write_bytes(text.encode())
    beside.write_bytes(settings_text.encode())
    edit = Edit("target_modules", ["q_proj", "v_proj"])
    written = edited_program(read_setup(script).recipe, [edit]).written
    assert written is not None and written.data == text.encode()
    assert written.beside == {beside: settings_text.replace("query", "q_proj").encode()}
    (tmp_path / "evaluate.py").write_text("from settings import *\n")
    recipe = read_setup(script).recipe
    if not read:  # there is no other place for it
        assert not program_holds(recipe, edit)
        return
    written = edited_program(recipe, [edit]).written
    assert written is not None and written.beside == {beside: settings_text.encode()}
    assert b'target_modules=["q_proj", "v_proj"]' in (written.data or b"")


@pytest.mark.parametrize(
    ("before", "read", "default"),
    [
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument('--rank', default={})\n"
         "args = p.parse_args()\n", "args.rank", '"8"'),
        ("import argparse\np = argparse.ArgumentParser()\n"
         "p.add_argument('--rank', type=int, default={})\nargs = p.parse_args()\n",
         "args.rank", "4"),
        ("from dataclasses import dataclass\nfrom transformers import HfArgumentParser\n"
         "@dataclass\nclass A:\n    rank: int = {}\n"
         "(args,) = HfArgumentParser(A).parse_args_into_dataclasses()\n", "args.rank", "4"),
    ],
)  # fmt: skip
def test_an_option_stays_one(tmp_path: Path, before: str, read: str, default: str) -> None:
    """Its default is changed, also where more than one reads it: a number in the place of
    ``args.rank`` would make the option one that does nothing."""
    text = f"{before}print({read})\n" + _OF_A_MODULE.replace("r=8", f"r={read}").replace(
        "IMPORT", ""
    ).replace("TARGETS", '["q_proj"]')
    script = tmp_path / "train.py"
    script.write_text(text.format(default))
    written = edited_program(read_setup(script).recipe, [Edit("r", 16)]).written
    assert written is not None and written.data == text.format("16").encode()


def test_a_module_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    script, beside = tmp_path / "train.py", tmp_path / "settings.py"
    text = _OF_A_MODULE.replace("IMPORT", "from settings import DROPOUT")
    script.write_text(text.replace("target_modules=TARGETS", "lora_dropout=DROPOUT"))
    beside.write_text("DROPOUT = '0.1'\n")
    plan = Plan.make(str(script), str(tmp_path), write=True)
    recipe = read_setup(script).recipe
    fixed = edited_program(recipe, [Edit("lora_dropout", 0.1)])
    diagnosis = lora_doctor.check(str(script), depth="static")
    diagnosis = replace(diagnosis, recipe=recipe, fixed_recipe=fixed)
    assert "-DROPOUT = '0.1'\n+DROPOUT = 0.1\n" in (plan.with_diff(diagnosis).recipe_diff or "")
    beside.write_text("DROPOUT = '0.2'\n")
    with pytest.raises(InputError, match=r"settings\.py: was changed while"):
        plan.with_diff(diagnosis)
