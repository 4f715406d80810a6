"""Code of model repositories, in the layouts that occur, is understood and never run."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_doctor.static.installed.installed_classes import installed_class_has
from lora_doctor.static.model_files import gather_static
from lora_doctor.static.remote_code.remote_code import (
    NestedAdapterCall,
    RemoteCode,
    nested_adapter_calls,
    read_remote_code,
)
from lora_doctor.static.remote_code.source_facts import ClassFacts

# A line that gives itself away when it runs, in every file of every repository here.
BOMB = "open(__file__ + '.ran', 'w').close()\n"

CONFIG = """
from transformers import PretrainedConfig

class MMConfig(PretrainedConfig):
    model_type = "mm"
    def __init__(self, vision_lora=None, rope_scaling=None, **kwargs):
        self.vision_lora = vision_lora
        self.rope_scaling = rope_scaling
        super().__init__(**kwargs)
    def _check(self):
        kind = self.rope_scaling["type"]
        factor = self.rope_scaling.get("factor")
"""

MODEL = """
import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel as Base
from transformers.generation import GenerationMixin as GM
from {config} import MMConfig
try:
    import flash_attn
except ImportError:
    flash_attn = None

class MMModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList()
    def forward(self, input_ids, attention_mask=None, *, labels=None, **kwargs):
        return input_ids

class MMForCausalLM(Base, GM):
    _tied_weights_keys = ["lm_head.weight"]
    def __init__(self, config):
        super().__init__(config)
        self.model = MMModel(config)
        assert getattr(config, "vision_lora", None) is not None
        from peft import LoraConfig, get_peft_model
        lora = LoraConfig(r=config.vision_lora['r'], task_type="CAUSAL_LM")
        peft_model = get_peft_model(self.model, lora, adapter_name="vision")
"""


@pytest.fixture(autouse=True)
def _silent() -> Any:
    """Parsing somebody's bad escapes must not warn on the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def repository(folder: Path, files: dict[str, str | bytes], **auto_map: str) -> RemoteCode:
    """A repository on disk and what is read from it; fails when any of it was executed."""
    config = {"model_type": "mm", "auto_map": auto_map} if auto_map else {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = (BOMB + content).encode()
        path.write_bytes(content)
    code = read_remote_code(folder, gather_static(folder, source="m"))
    assert not list(folder.rglob("*.ran")), "the repository's code ran"
    return code


def only_call(code: RemoteCode) -> NestedAdapterCall:
    (call,) = nested_adapter_calls(code)
    return call


def line_of(content: str, text: str) -> int:
    return (BOMB + content).splitlines().index(
        next(x for x in content.splitlines() if text in x)
    ) + 1


LAYOUTS: dict[str, tuple[dict[str, str], str]] = {
    "one file": ({"mm.py": CONFIG + MODEL.format(config="copy")}, "mm.MMForCausalLM"),
    "split": (
        {"configuration_mm.py": CONFIG, "modeling_mm.py": MODEL.format(config=".configuration_mm")},
        "modeling_mm.MMForCausalLM",
    ),
    "absolute": (
        {"configuration_mm.py": CONFIG, "modeling_mm.py": MODEL.format(config="configuration_mm")},
        "modeling_mm.MMForCausalLM",
    ),
    "nested": (
        {
            "entry.py": "from .pkg.models.modeling_mm import MMForCausalLM\n",
            "pkg/__init__.py": "",
            "pkg/configs.py": CONFIG,
            "pkg/models/__init__.py": "from .modeling_mm import *\n",
            "pkg/models/modeling_mm.py": MODEL.format(config="..configs"),
        },
        "entry.MMForCausalLM",
    ),
    "package": (
        {
            "entry.py": "from . import pkg\nclass X(pkg.MMForCausalLM): ...\n",
            "pkg/__init__.py": "from .modeling_mm import *\n",
            "pkg/modeling_mm.py": MODEL.format(config="somewhere"),
        },
        "entry.X",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_inner_adapter_is_found_in_every_layout(tmp_path: Path, layout: str) -> None:
    files, head = LAYOUTS[layout]
    code = repository(tmp_path, dict(files), AutoModelForCausalLM=head)
    call = only_call(code)
    file, content = next((n, c) for n, c in files.items() if "get_peft_model(" in c)
    assert str(call.at) == f"{file}:{line_of(content, 'get_peft_model(self')}"
    assert (call.class_name, call.wrapped) == ("MMForCausalLM", "self.model")
    assert (call.inner_class, call.task_type) == ("MMModel", "CAUSAL_LM")
    assert call.task_type_known and not call.conditional
    assert call.inner_has_prepare_inputs is False
    assert str(call.inner_at) == f"{file}:{line_of(content, 'class MMModel')}"
    head_class = code.auto_class("AutoModelForCausalLM")
    assert head_class is not None and code.has_prepare_inputs(head_class) is True
    assert code.unread == {} and file in code.reachable
    assert [each.attribute for each in code.requirements()] == ["vision_lora"]


def test_facts_of_classes_and_configs(tmp_path: Path) -> None:
    files = {
        "configuration_mm.py": CONFIG,
        "modeling_mm.py": MODEL.format(config=".configuration_mm"),
    }
    code = repository(tmp_path, dict(files), AutoModel="modeling_mm.MMForCausalLM")
    model = next(each for each in code.classes() if each.name == "MMModel")
    assert model.forward is not None
    assert [(p.name, p.kind, p.has_default) for p in model.forward] == [
        ("input_ids", "plain", False),
        ("attention_mask", "plain", True),
        ("labels", "keyword", True),
        ("kwargs", "**", True),
    ]
    head = next(each for each in code.classes() if each.name == "MMForCausalLM")
    assert head.bases == ("Base", "GM") and head.tied_keys is not None
    assert head.tied_keys[0] == "list" and head.tied_keys[1].file == "modeling_mm.py"
    reads = {(r.attribute, r.key, r.strict, r.at.file) for r in code.config_reads()}
    assert reads == {
        ("rope_scaling", "type", True, "configuration_mm.py"),
        ("rope_scaling", "factor", False, "configuration_mm.py"),
        ("vision_lora", "r", True, "modeling_mm.py"),
    }
    names = {(module, name) for module, name, _, _ in code.transformers_names()}
    assert ("transformers.generation", "GenerationMixin") in names
    guards = {each.module: each.guard for each in code.imports()}
    assert guards["flash_attn"] == "try" and guards["peft"] == "function" and guards["torch"] == ""


def model_with(body: str, head: str = "") -> str:
    """A model whose `__init__` has `body` (lines of one statement each)."""
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    return f"""
import peft
from peft import LoraConfig, TaskType, get_peft_model as wrap
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.generation.utils import GenerationMixin
class Headless(nn.Module): ...
class Able(nn.Module):
    def prepare_inputs_for_generation(self, *a, **k): ...
class Mixed(Headless, GenerationMixin): ...
class Assigned(nn.Module):
    prepare_inputs_for_generation = None
class Outer(nn.Module):
    def __init__(self, config):
        self.inner = Headless()
class Child(Outer): ...
{head}
class Model(nn.Module):
    def __init__(self, config):
{lines}
    def helper(self, r=8):
        self.part = wrap(self.part, LoraConfig(r=r, task_type="CAUSAL_LM"))
    def unused(self):
        self.part = wrap(self.part, LoraConfig(r=r, task_type="CAUSAL_LM"))
"""


@pytest.mark.parametrize(
    ("body", "inner", "task_type", "known", "able"),
    [
        ("self.m = Able()\nwrap(self.m, LoraConfig(task_type=TaskType.CAUSAL_LM))",
         "Able", "CAUSAL_LM", True, True),
        ("self.m = Mixed()\nwrap(self.m, LoraConfig())", "Mixed", None, True, True),
        ("self.m = Assigned()\nwrap(self.m, LoraConfig())", "Assigned", None, True, True),
        ("self.m = Headless()\nself.m = peft.get_peft_model(self.m, LoraConfig(**config.lora))",
         "Headless", None, False, False),
        ("m = Headless()\nc = LoraConfig(task_type='SEQ_CLS')\nself.m = wrap(m, peft_config=c)",
         "Headless", "SEQ_CLS", True, False),
        ("self.m = wrap(Headless(), config.lora)", "Headless", None, False, False),
        ("wrap(self, LoraConfig())", "Model", None, True, False),
        ("self.o = Child(config)\nwrap(self.o.inner, LoraConfig())",
         "Headless", None, True, False),
        ("self.m = Headless() if config.x else Able()\nwrap(self.m, LoraConfig())",
         "Headless", None, True, None),
        ("self.m = AutoModelForCausalLM.from_config(config)\nwrap(self.m, LoraConfig())",
         "transformers.AutoModelForCausalLM", None, True, None),
        ("m = self.m = Headless()\nlora = self.c = LoraConfig(task_type=None)\nwrap(m, lora)",
         "Headless", None, True, False),
        ("wrap(self.elsewhere, LoraConfig())", None, None, True, None),
        ("wrap()", None, None, False, None),
        ("wrap(*config.parts)", None, None, False, None),
    ],
)  # fmt: skip
def test_what_is_wrapped(
    tmp_path: Path, body: str, inner: str | None, task_type: str | None, known: bool,
    able: bool | None,
) -> None:  # fmt: skip
    code = repository(tmp_path, {"m.py": model_with(body)}, AutoModel="m.Model")
    call = only_call(code)
    assert (call.inner_class, call.task_type, call.task_type_known) == (inner, task_type, known)
    assert call.inner_has_prepare_inputs is able


def test_a_method_called_by_init_counts_and_another_does_not(tmp_path: Path) -> None:
    """InternVL wraps in a method, and only when its config says so."""
    body = "self.part = Headless()\nif config.use_lora:\n    self.helper(r=config.use_lora)"
    code = repository(tmp_path, {"m.py": model_with(body)}, AutoModel="m.Model")
    call = only_call(code)
    assert call.inner_class == "Headless" and call.inner_has_prepare_inputs is False
    assert len(code.adapter_calls()) == 2, "the other is known as well, and not at init"
    body = "self.part = Headless()\nif config.x:\n    self.part = wrap(self.part, LoraConfig())"
    code = repository(tmp_path, {"m.py": model_with(body)}, AutoModel="m.Model")
    assert only_call(code).conditional


def test_samples_are_not_what_loading_runs(tmp_path: Path) -> None:
    files = {
        "modeling.py": "from .helper import thing\nclass M: ...\n",
        "helper.py": "import torch\n",
        "sample_training.py": "import deepspeed\nfrom peft import get_peft_model\n",
    }
    code = repository(tmp_path, dict(files), AutoModel="modeling.M")
    assert code.reachable == {"modeling.py", "helper.py"}
    assert {each.module for each in code.imports() if not each.level} == {"torch"}
    assert "deepspeed" in {each.module for each in code.imports(reachable_only=False)}


def test_guards_of_imports(tmp_path: Path) -> None:
    content = """
from typing import TYPE_CHECKING
import always, a.b as c
if TYPE_CHECKING:
    import typed
if is_x_available():
    import conditional
try:
    from tried import x
finally:
    import last
def f():
    import in_function
    try:
        import tried_in_function
    except Exception:
        import fallback
try:
    import tried_really
except ImportError:
    pass
class K:
    import in_class
with y:
    import in_with
"""
    code = repository(tmp_path, {"m.py": content}, AutoModel="m.K")
    assert {each.module: each.guard for each in code.imports()} == {
        "typing": "", "always": "", "a.b": "", "typed": "typing", "conditional": "if",
        "tried": "", "last": "", "in_function": "function", "tried_in_function": "try",
        "fallback": "try", "tried_really": "try", "in_class": "", "in_with": "",
    }  # fmt: skip


def test_names_of_transformers_with_their_places(tmp_path: Path) -> None:
    content = """
import transformers
import transformers.models.llama.modeling_llama as ll
from transformers.utils import (
    gone, kept as k,
)
class A(transformers.PreTrainedModel):
    x = ll.LlamaModel
    y = transformers.utils.logging.get_logger("a")
"""
    code = repository(tmp_path, {"m.py": content}, AutoModel="m.A")
    found = {(module, name): at.line for module, name, at, _ in code.transformers_names()}
    assert found == {
        ("transformers.utils", "gone"): 5,
        ("transformers.utils", "kept"): 5,
        ("transformers", "PreTrainedModel"): 8,
        ("transformers.models.llama.modeling_llama", "LlamaModel"): 9,
        ("transformers.utils.logging", "get_logger"): 10,
    }


def test_requirements_in_their_forms(tmp_path: Path) -> None:
    content = """
class M:
    def __init__(self, config):
        assert hasattr(config, "a") and config.b is not None, "m"
        if not hasattr(self.config, "c"):
            raise ValueError
        if config.text_config.d is None:
            raise ValueError
        if config.e is None:
            pass
        if config.f > 1:
            raise ValueError
"""
    code = repository(tmp_path, {"m.py": content}, AutoModel="m.M")
    assert {each.attribute for each in code.requirements()} == {"a", "b", "c", "d", "text_config"}
    assert {each.class_name for each in code.requirements()} == {"M"}


def test_reads_through_a_variable(tmp_path: Path) -> None:
    content = """
class M:
    def f(self, config):
        scaling = self.config.rope_scaling
        other = {}
        return scaling["type"], other["type"], config.audio["rate"], self.x["y"]
"""
    code = repository(tmp_path, {"m.py": content}, AutoModel="m.M")
    assert {(r.attribute, r.key) for r in code.config_reads()} == {
        ("rope_scaling", "type"),
        ("audio", "rate"),
    }


def test_classes_of_the_installed_transformers(tmp_path: Path) -> None:
    """The same sources, asked of the classes themselves: the answer moved in transformers 4.50."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        names = [
            "PatchTSMixerModel",  # imports its base absolutely
            "PreTrainedModel", "LlamaModel", "LlamaForCausalLM", "LlamaPreTrainedModel",
            "T5EncoderModel", "T5ForConditionalGeneration", "CLIPVisionModel", "GPT2LMHeadModel",
            "WhisperForConditionalGeneration", "MistralForCausalLM", "BertModel", "BloomModel",
            "Blip2ForConditionalGeneration", "Qwen2ForCausalLM", "LlavaForConditionalGeneration",
        ]  # fmt: skip
        for name in names:
            cls = getattr(transformers, name, None)
            if cls is not None:
                expected = hasattr(cls, "prepare_inputs_for_generation")
                found = installed_class_has(name, "prepare_inputs_for_generation")
                assert found is expected, name
    assert installed_class_has("NoSuchModel", "x") is None
    body = "self.m = LlamaModel(config)\nwrap(self.m, LoraConfig(task_type='CAUSAL_LM'))"
    content = model_with(body, head="from transformers import LlamaModel")
    call = only_call(repository(tmp_path, {"m.py": content}, AutoModel="m.Model"))
    assert call.inner_class == "transformers.LlamaModel"
    assert call.inner_has_prepare_inputs is hasattr(
        transformers.LlamaModel, "prepare_inputs_for_generation"
    )


# --- code that cannot be read ---------------------------------------------------------------


def test_unreadable_files_are_reasons(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "good.py": "class A: ...\n",
        "syntax.py": "def broken(:\n",
        "nul.py": b"x = 1\0\n",
        "latin.py": b"x = '\xe9'\n",
        "declared.py": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
        "nested.py": "x = " + "-" * 50_000 + "1\n",
        "long.py": b"#" * (3 << 20),
        "escape.py": "x = '\\d'\n",
        "empty.py": b"",
    }
    (tmp_path / "outside").write_text("class Secret: ...\n")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "link.py").symlink_to("../outside")
    code = repository(folder, files, AutoModel="good.A", AutoConfig="missing.C")
    assert set(code.files) == {"good.py", "declared.py", "escape.py", "empty.py"}
    assert set(code.unread) == {
        "syntax.py", "nul.py", "latin.py", "nested.py", "long.py", "missing.py", "link.py",
    }  # fmt: skip
    assert code.unread["syntax.py"].startswith("not Python: ")
    assert "at line 2" in code.unread["syntax.py"]
    assert code.unread["missing.py"] == "named by auto_map but not there"
    assert all("\n" not in reason for reason in code.unread.values())


def test_circles_end(tmp_path: Path) -> None:
    files = {
        "a.py": "from .b import *\nfrom .b import B\nclass A(B): ...\nclass Self(Self): ...\n",
        "b.py": "from .a import *\nfrom .a import A, Gone\nclass B(A, Gone): ...\n",
    }
    code = repository(tmp_path, dict(files), AutoModel="a.A")
    found = code.auto_class("AutoModel")
    assert isinstance(found, ClassFacts)
    assert code.has_prepare_inputs(found) is None, "Gone is nowhere, so nobody can tell"
    assert len(code.lineage(found)) == 3


def test_code_of_other_repositories_is_named(tmp_path: Path) -> None:
    code = repository(tmp_path, {}, AutoModel="org/other--modeling.M")
    assert code.foreign == ("org/other",) and code.unread == {} and not code.reachable


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    content=st.binary(max_size=80)
    | st.text(max_size=80).map(str.encode)
    | st.lists(
        st.sampled_from(
            ["class A(B, A.c):", " def __init__(self, config):", "  self.m = A(config)", "  pass",
             "  get_peft_model(self.m, x)", "from . import *", "from .m import A as B", "import m",
             "from .. import m", "if x:", "try:", " x = config.a['b']", "except: pass",
             "get_peft_model(*a, **k)", "match x:", " case 1: import q"]
        ),
        max_size=12,
    ).map(lambda lines: "\n".join(lines).encode())
)  # fmt: skip
def test_any_code_gives_facts_or_a_reason(tmp_path: Path, content: bytes) -> None:
    code = repository(tmp_path, {"m.py": content}, AutoModel="m.A")
    assert ("m.py" in code.files) != ("m.py" in code.unread)
    for call in nested_adapter_calls(code):
        assert call.at.line >= 1
    code.transformers_names()


def test_reading_imports_nothing_heavy(tmp_path: Path) -> None:
    repository(tmp_path, {"m.py": MODEL.format(config="x")}, AutoModel="m.MMForCausalLM")
    program = (
        "import sys; from pathlib import Path;"
        "from lora_doctor.static.model_files import gather_static as g;"
        "from lora_doctor.static.remote_code.remote_code import read_remote_code as r;"
        "from lora_doctor.static.remote_code.remote_code import nested_adapter_calls;"
        "p = Path(sys.argv[1]); c = r(p, g(p, source='m')); assert nested_adapter_calls(c);"
        "bad = {'torch', 'transformers', 'peft', 'm'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
