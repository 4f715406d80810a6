"""The readers that are fuzzed, and what they are fed: real inputs, bent and repeated.

To add a reader, add a `Target` to `TARGETS`: a name, a strategy for its files, and a call that
reads them. `bent` makes hostile bytes of good ones, `json_files` of a good JSON value.
"""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from tests.fuzz_inputs import MANY, bent, changed, json_files, to_bytes
from tests.fuzzing import Files, Target

# --- configs and tokenizers -----------------------------------------------------------------

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "vocab_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4, "torch_dtype": "bfloat16",
    "rope_scaling": {"type": "linear", "factor": 2.0}, "text_config": {"hidden_size": 8},
    "id2label": {"0": "a", "1": "b"}, "tie_word_embeddings": False,
    "auto_map": {"AutoConfig": "configuration_x.XConfig", "AutoModel": "org/x--modeling_x.X"},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}  # fmt: skip
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"},
    "post_processor": None, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}  # fmt: skip


def read_config(folder: Path) -> object:
    from lora_doctor.static.model_files import gather_static

    static = gather_static(folder, source="model")
    return (
        static.model_type, static.architectures, static.auto_map, static.native_dtype,
        static.listing, static.tokenizer_config.reason, static.generation_config.reason,
        static.weights.reason, static.adapter_config.reason,
    )  # fmt: skip


def read_tokenizer(folder: Path) -> object:
    from lora_doctor.static.tokenizer_file import read_tokenizer_file
    from lora_doctor.static.tokenizer_reading import unreadable_parts, whole_file_error

    path = folder / "tokenizer.json"
    found = read_tokenizer_file(path)
    return unreadable_parts(found), whole_file_error(path), found.model_type, found.merges


# --- weights --------------------------------------------------------------------------------


def _entry(start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]}


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """A file whose length, header and data fit, or nearly so."""
    places = sorted(4 * number for number in draw(st.lists(st.integers(0, 8), max_size=5)))
    header: dict[str, Any] = {
        f"t{number}": _entry(start, stop) for number, (start, stop) in enumerate(pairwise(places))
    }
    if draw(st.booleans()):
        header["__metadata__"] = draw(changed({"format": "pt"}))
    if draw(st.booleans()):
        header = draw(changed(header))
    content = draw(bent(st.just(json.dumps(header).encode())))
    announced = draw(st.sampled_from([len(content), len(content) + 1, 1 << 62, 0]))
    if draw(st.integers(0, 3)):
        announced = len(content)
    data = bytes(max(places, default=0) + draw(st.sampled_from([0, 0, 0, 1, 4])))
    return struct.pack("<Q", announced) + content + data


def read_safetensors(folder: Path) -> object:
    """What we take, the library takes: a checkpoint is never called sound that does not load."""
    from lora_doctor.static.weights import DTYPE_BITS, read_header

    path = folder / "model.safetensors"
    tensors, metadata = read_header(path)
    if all(tensor.dtype in DTYPE_BITS for tensor in tensors.values()):
        try:
            with safe_open(str(path), framework="np") as file:
                assert set(file.keys()) == set(tensors)
        except SafetensorError as error:
            raise AssertionError(f"the library refuses it: {error}") from error
    return sorted(tensors.items()), sorted(metadata.items())


def read_shards(folder: Path) -> object:
    from lora_doctor.static.weights import read_weights

    found = read_weights(folder)
    return sorted(found.tensors), found.files, sorted(found.unread.items())


INDEX = {
    "metadata": {"total_size": 8},
    "weight_map": {"a": "one.safetensors", "b": "../two", "c": "."},
}
SHARDS = st.builds(
    lambda index, shard: {**index, "one.safetensors": shard},
    json_files("model.safetensors.index.json", INDEX),
    safetensors(),
)

# --- Python ---------------------------------------------------------------------------------

LINES = st.sampled_from([
    "import torch", "import torch.nn.functional as F", "from torch import nn", "import os, sys, re",
    "from transformers import AutoModel, PreTrainedModel, NoSuchThing", "from .b import *",
    "from .modeling_x import X as Y", "from . import b",
    "from peft import get_peft_model, LoraConfig",
    "try:\n    import flash_attn\nexcept ImportError:\n    flash_attn = None",
    "if is_flash_attn_2_available():\n    import flash_attn", "raise SystemExit('run')",
    "open('run', 'w')", "class X(PreTrainedModel):\n    _tied_weights_keys = ['a']\n"
    "    def __init__(self, config):\n        super().__init__(config)\n"
    "        self.m = get_peft_model(self.inner, LoraConfig(task_type='CAUSAL_LM'))\n"
    "        self.t = config.rope_scaling['type']",
    "class X(X, b.X, nn.Module): ...",
    "class Conf(PretrainedConfig):\n    def __init__(self): pass",
    "def training_step(model, batch):\n    loss = model(batch).loss\n"
    "    if torch.isnan(loss):\n        loss = torch.tensor(0.0)\n    loss.backward()\n"
    "    return loss",
    "loss = torch.nan_to_num(loss, nan=0.0)", "x[torch.isnan(x)] = 0", "loss.backward()",
    "for p in model.parameters():\n    p.grad = torch.nan_to_num(p.grad)",
    "model = get_peft_model(model, config)", "optimizer = AdamW(model.parameters(), lr=1e-4)",
    "h = torch.where(torch.isfinite(h), h, torch.zeros_like(h))", "a = b = c = d",
    "with torch.no_grad():\n    y = x.clamp(min=-65504, max=65504)", "x = f(f(f(x)))",
    "match x:\n    case 1:\n        import a", "async def f():\n    await g()\n", "x = a.b.c.d.e.f",
    "x = lambda a, *b, **c: (yield)", "assert getattr(config, 'x', None)",
    "# -*- coding: latin-1 -*-",
    "\"\"\"try: except: import x\"\"\"", "x = [i for i in range(3) if i != i]", "del x",
    "x: int = 3",
])  # fmt: skip
#: What is repeated makes depth, length, or a chain that something is followed along.
BOMBS = st.sampled_from([
    ("x = ", "(", ""), ("x = ", "-", "1"), ("x = ", "a.", "b"), ("x = ", "a + ", "a"),
    ("x = [", "0,", "]"), ("", "\n", ""), ("", " ", "x"), ("", "if x:\n ", ""), ("x", ".f()", ""),
    ("", "try:\n", ""), ("", "import a%d\n", ""), ("", "from transformers import N%d\n", ""),
    ("", "from .b import N%d\n", ""), ("", "a%d = a%d\n", ""), ("", "class C%d(X): pass\n", ""),
    ("", "x = not x != x\n", ""), ("x = ", "not ", "x"), ("f(", "x=1,", ")"), ("#", "try : ", ""),
    ("", "from transformers.m%d import x\n", ""), ("", "loss = loss + 1\n", ""), ("x = '", "a",
    "'"),
    ("if a: pass\n", "elif a: pass\n", ""), ("", "def f%d(): import b\n", ""), ("", "@f\n",
    "def f(): 0"),
    ("class X:\n def __init__(self):\n  pass\n", "  self.x = config.rope_scaling['t']\n", ""),
    ("class X:\n def __init__(self, config):\n  pass\n", "  x = s['t']\n", ""),
    ("def f():\n loss = 1\n", " if torch.isnan(loss): loss = 0\n", " return loss"),
])  # fmt: skip


@st.composite
def python(draw: st.DrawFn) -> bytes:
    """A file of statements that the readers look for; now and then with one bomb."""
    parts = draw(st.lists(LINES, max_size=8))
    if draw(st.integers(0, 3)) == 0:
        before, repeated, after = draw(BOMBS)
        times = min(draw(MANY), 1_000_000 // len(repeated))
        numbered = "%d" in repeated
        middle = (
            "".join(repeated.replace("%d", str(n)) for n in range(times))
            if numbered
            else repeated * times
        )
        parts.insert(draw(st.integers(0, len(parts))), before + middle + after)
    return "\n".join(parts).encode()


@st.composite
def repositories(draw: st.DrawFn) -> Files:
    """A config with `auto_map`, and some files of code that import each other."""
    names = draw(st.lists(
        st.sampled_from(["modeling_x.py", "b.py", "configuration_x.py", "sub/__init__.py",
        "sub/b.py"]),
        min_size=1, max_size=4, unique=True,
    ))  # fmt: skip
    auto_map = {"AutoConfig": "configuration_x.Conf", "AutoModelForCausalLM": "modeling_x.X"}
    config = {**CONFIG, "auto_map": auto_map}
    content = json.dumps(draw(st.one_of(st.just(config), changed(config)))).encode()
    return {"config.json": content, **{name: draw(bent(python())) for name in names}}


def read_code(folder: Path) -> object:
    from lora_doctor.static.model_files import gather_static
    from lora_doctor.static.remote_code import code_fit
    from lora_doctor.static.remote_code.loaded_code import loaded_code
    from lora_doctor.static.remote_code.remote_code import nested_adapter_calls, read_remote_code

    static = gather_static(folder, source="model")
    code = read_remote_code(folder, static)
    loaded = loaded_code(code, static.architectures, None)
    return (
        sorted(code.unread.items()), nested_adapter_calls(code), code.transformers_names(),
        code_fit.missing_packages(code, loaded, demands_all=True),
        code_fit.missing_names(code, loaded), code_fit.missing_keys(code, loaded, static.config),
        code_fit.tied_lists(code, loaded, static.config),
    )  # fmt: skip


def read_demanded(folder: Path) -> object:
    from lora_doctor.static.remote_code import demanded_packages

    text = (folder / "file.py").read_bytes().decode("utf-8", "replace")
    return demanded_packages._by_text(text), demanded_packages._by_tree(text)


def read_script(folder: Path) -> object:
    from lora_doctor.static.script.training_script import read_training_script

    found = read_training_script(folder / "train.py")
    return found.lines, found.replacements, found.order


# --- recipes --------------------------------------------------------------------------------

RECIPE = {
    "r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    "lora_dropout": 0.05, "rank_pattern": {"q_proj": 8}, "load_in_4bit": True, "dtype": "bfloat16",
    "modules_to_save": None, "bias": "none", "use_dora": False,
}  # fmt: skip
ADAPTER = {
    **{k: v for k, v in RECIPE.items() if k not in ("load_in_4bit", "dtype")},
    "peft_type": "LORA",
}
PRESCRIPTION = {
    "schema_version": "1", "model": "arch:llama", "edits": [{"key": "r", "value": 8},
    {"key": "dtype", "remove": True}],
    "recipe": RECIPE, "patches": [], "versions": {"peft": "0.21.2"},
}  # fmt: skip
YAML_LINES = st.sampled_from([
    "r: 16", "lora_alpha: 32", "target_modules: [q_proj, v_proj]",
    "target_modules:\n  - q_proj\n  - v_proj",
    "dtype: bfloat16 # as in the paper", "rank_pattern: {q_proj: 8}", "task_type: 'CAUSAL_LM'",
    "---",
    "a: &x [1, 2]", "b: *x", "<<: *x", "? complex\n: key",
    "r: !!python/object/apply:os.system ['id']",
    "lora_dropout: 5e-2", "r: 0o17", "bias: |\n  none", "%YAML 1.1", "r: 2026-11-27", "...",
    "\t", "r: !!binary aGk=",
    "use_dora: yes", "r: 16", "r: .nan", "!!set {a, b}", "target_modules: all-linear",
    "modules_to_save: [",
    "x: !!timestamp 2001-12-14t21:59:43.10-05:00", "x: !!omap [a: 1]", "x: 1:30:00", "'r': 16",
    "r : 16",
])  # fmt: skip
YAML_BOMBS = st.sampled_from([
    ("target_modules:\n", "- a\n", ""), ("target_modules: [", "a,", "]"), ("r: ", "[", ""), ("",
    "k%d: 1\n", ""),
    ("a: &a0 [x]\n", "b%d: &a%d [*a0,*a0,*a0]\n", ""), ("r: ", "{a: ", ""), ("r: '", "a", "'"),
    ("r: ", "- ", "1"),
    ("", "# x\n", "r: 1"), ("", " ", "r: 1"), ("", "\n", "r: 1"), ("r: \"", "\\x41", "\""), ("",
    "? ", "r"),
    ("", "---\nr: 1\n", ""), ("r: ", "!!str ", "1"), ("r: |\n", "  a\n", ""), ("", "- ", "r"),
])  # fmt: skip


@st.composite
def yaml_recipes(draw: st.DrawFn) -> Files:
    parts = draw(st.lists(YAML_LINES, max_size=8))
    if draw(st.integers(0, 3)) == 0:
        before, repeated, after = draw(YAML_BOMBS)
        times = min(draw(MANY), 1_200_000 // len(repeated))
        if "%d" in repeated:
            middle = "".join(repeated.replace("%d", str(n + 1)) for n in range(times))
        else:
            middle = repeated * times
        parts.insert(draw(st.integers(0, len(parts))), before + middle + after)
    return {"recipe.yaml": draw(bent(st.just("\n".join(parts).encode())))}


def _read_recipe(name: str) -> Any:
    def read(folder: Path) -> object:
        from lora_doctor.recipe.edit import Edit
        from lora_doctor.recipe.files.read_write import read_recipe, write_edits

        recipe = read_recipe(folder / name)
        return recipe.to_json(), write_edits(folder / name, [Edit("r", 4)])

    return read


def read_prescription(folder: Path) -> object:
    from lora_doctor.recipe.files.prescription import read_prescription as read

    return read(folder / "prescription.json").to_json()


# --- pasted text ----------------------------------------------------------------------------

MESSAGES = st.sampled_from([
    "Traceback (most recent call last):", '  File "train.py", line 3, in <module>',
    "TypeError: LlamaModel.forward() got an unexpected keyword argument 'inputs_embeds'",
    "ValueError: Target modules {'q_proj'} not found in the base model. Please check",
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate", "loss is nan",
    "KeyError: 'type'",
    "{'loss': 0.0, 'grad_norm': nan, 'learning_rate': 1e-4}", "self.router(",
    "too many values to unpack",
    "int8_linear_matmul", "Target module GptOssExperts(", "is not supported",
    "Unrecognized configuration class",
    "target_parameters=", "Module 'a.b' is incompatible with", "object has no attribute '",
    "LD101", "\x1b[31m",
    "a" * 3_000, "nan encountered",
    "Some weights of X were not initialized from the model checkpoint",
])  # fmt: skip


@st.composite
def logs(draw: st.DrawFn) -> Files:
    parts = draw(st.lists(MESSAGES | st.text(max_size=20), min_size=1, max_size=6))
    gap = draw(st.sampled_from(["\n", " ", "", "\t"]))
    times = draw(st.one_of(st.just(1), st.just(1), MANY))
    text = gap.join(parts)
    text *= min(times, 400_000 // max(len(text), 1) + 1)
    return {"log.txt": draw(bent(st.just(to_bytes(text))))}


def read_log(folder: Path) -> object:
    from lora_doctor.cli.explain import explain

    return explain((folder / "log.txt").read_bytes().decode("utf-8", "replace"))


# --- the hub --------------------------------------------------------------------------------

LISTING = {
    "id": "org/x", "sha": "0" * 40, "gated": False,
    "siblings": [
        {"rfilename": "config.json", "size": 2}, {"rfilename": "a/b.py", "size": None},
        {"rfilename": "../x.py", "size": 3}, {"rfilename": "model.safetensors", "size": 1 << 40},
    ],
}  # fmt: skip


def read_listing(folder: Path) -> object:
    from lora_doctor.static.hub.hub_files import choose, what_instead
    from lora_doctor.static.hub.listing import parse_listing

    listing = parse_listing((folder / "listing.json").read_bytes())
    chosen, reasons = choose(listing.sizes)
    assert not any(".." in Path(name).parts or name.startswith("/") for name in chosen)
    return listing.commit, chosen, sorted(reasons.items()), what_instead(listing.sizes)


# --- the list -------------------------------------------------------------------------------

TARGETS: tuple[Target, ...] = (
    Target("config", json_files("config.json", CONFIG), read_config),
    Target("tokenizer", json_files("tokenizer.json", TOKENIZER), read_tokenizer),
    Target("safetensors", safetensors().map(lambda f: {"model.safetensors": f}), read_safetensors),
    Target("shards", SHARDS, read_shards),
    Target("code", repositories(), read_code),
    Target("demanded", bent(python()).map(lambda text: {"file.py": text}), read_demanded),
    Target("script", bent(python()).map(lambda text: {"train.py": text}), read_script),
    Target("recipe-yaml", yaml_recipes(), _read_recipe("recipe.yaml")),
    Target("recipe-json", json_files("recipe.json", RECIPE), _read_recipe("recipe.json")),
    Target(
        "adapter-config",
        json_files("adapter_config.json", ADAPTER),
        _read_recipe("adapter_config.json"),
    ),
    Target("prescription", json_files("prescription.json", PRESCRIPTION), read_prescription),
    Target("log", logs(), read_log),
    Target("listing", json_files("listing.json", LISTING), read_listing),
)
