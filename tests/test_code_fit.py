"""What remote code needs and this environment lacks, read from both sources without importing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.static.installed.installed_names import importable
from lora_doctor.static.model_files import gather_static
from lora_doctor.static.remote_code import code_fit
from lora_doctor.static.remote_code.demanded_packages import demanded_packages
from lora_doctor.static.remote_code.loaded_code import LoadedCode, loaded_code
from lora_doctor.static.remote_code.remote_code import RemoteCode, read_remote_code

CONFIG = """
from transformers import PretrainedConfig
class C(PretrainedConfig):
    def __init__(self, rope_scaling=None, **kwargs):
        BEFORE
        super().__init__(**kwargs)
        AFTER
"""
HEAD = "from transformers import PreTrainedModel\nfrom .conf import C\n"
MODEL = "class M(PreTrainedModel):\n    def __init__(self, config):\n        BODY\n"


def repository(folder: Path, **files: str) -> tuple[RemoteCode, LoadedCode]:
    auto_map = {"AutoConfig": "conf.C", "AutoModelForCausalLM": "model.M",
                "AutoModelForSequenceClassification": "model.Other",
                "AutoProcessor": "processor.P"}  # fmt: skip
    files.setdefault("conf", CONFIG.replace("BEFORE", "pass").replace("AFTER", "pass"))
    files.setdefault("model", HEAD + MODEL.replace("BODY", "pass"))
    (folder / "config.json").write_text(json.dumps({"auto_map": auto_map, "model_type": "m"}))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    code = read_remote_code(folder, gather_static(folder, source="m"))
    return code, loaded_code(code, ("M",), None)


SOURCES = [
    "import a, b.c as d\nfrom e.f import g\nfrom . import h\nfrom .i import j\n",
    "def f():\n    import a\n    import b as c\n    from d import e\n",
    "try:\n    import a\nexcept ImportError:\n    import b\nimport c\n",
    "from x import y\nif is_torch_available():\n    import a\nelse:\n    import b\n",
    "if is_flash_attn_2_available() and d:\n    from a import b\n",
    "def is_mine_available(): ...\nif is_mine_available():\n    import a\n",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import b\n",
    'def f():\n    """\n    from a import b\n    import c\n    """\n',
    "class A:\n    import a\n    with b:\n        import c\n",
]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_what_transformers_demands_is_what_it_says(tmp_path: Path, source: str) -> None:
    """Its own function is asked, in whichever form is installed."""
    pytest.importorskip("transformers")
    from transformers.dynamic_module_utils import get_imports

    file = tmp_path / "m.py"
    file.write_text(source)
    found = demanded_packages(source)
    assert set(found) == set(get_imports(file))
    lines = source.splitlines()
    assert all(name in lines[line - 1] for name, line in found.items())


@pytest.mark.slow
def test_nothing_that_can_be_imported_is_called_gone() -> None:
    """A false "gone" would be a false alarm for every repository that imports it."""
    transformers = pytest.importorskip("transformers")
    import importlib

    modules = [
        "utils", "modeling_utils", "cache_utils", "generation", "generation.utils", "utils.logging",
        "modeling_outputs", "activations", "models.llama", "models.llama.modeling_llama",
        "models.auto", "models.auto.modeling_auto", "file_utils", "tokenization_utils",
        "tokenization_utils_fast", "image_processing_utils", "models.clip.modeling_clip",
    ]  # fmt: skip
    for name in modules:
        full = f"transformers.{name}"
        try:
            module = importlib.import_module(full)
        except ImportError:
            assert importable(full) != "there" or importable(full, "x") != "there"
            continue
        assert importable(full) != "gone", full
        for attribute in dir(module):
            if not attribute.startswith("__"):
                assert importable(full, attribute) != "gone", (full, attribute)
        assert importable(full, "no_such_name") != "there", full
    for name in ("LlamaForCausalLM", "AutoModel", "PreTrainedModel", "Trainer", "models"):
        assert hasattr(transformers, name) and importable("transformers", name) == "there"
    # dir() of a lazy package lists what its table took over from other modules, too.
    for name in ["DummyObject", *dir(transformers)[::4]]:
        if name.isidentifier() and not name.startswith("__"):
            assert importable("transformers", name) != "gone", name
    assert importable("transformers", "NoSuchModel") == "gone"
    assert importable("transformers.models.no_such.modeling_no_such", "x") == "gone"
    assert importable("no_such_package_at_all") == "gone"


def packages(folder: Path, *, demands_all: bool = False, **files: str) -> dict[str, str]:
    code, loaded = repository(folder, **files)
    found = code_fit.missing_packages(code, loaded, demands_all=demands_all)
    return {item.name: item.when for item in found}


def test_packages_of_the_files_that_are_loaded(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    found = packages(
        tmp_path,
        model="import gone_a\nfrom .helper import H\nfrom lonely import L\n" + HEAD
        + MODEL.replace("BODY", "import gone_in_function"),
        helper="import gone_b\ndef H():\n    import gone_c\n",
        lonely="L = 1\n",
        processor="import gone_d\n",
        sample="import gone_e\n",
    )  # fmt: skip
    assert found == {
        "gone_a": "always", "gone_b": "always", "gone_in_function": "function", "lonely": "always",
    }  # fmt: skip


def test_on_the_hub_every_file_is_looked_into(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    files = {"model": "from .helper import H\n" + HEAD + MODEL.replace("BODY", "pass"),
             "helper": "def H():\n    from gone_c import x\n"}  # fmt: skip
    assert packages(tmp_path, **files) == {}
    assert packages(tmp_path, demands_all=True, **files) == {"gone_c": "function"}


def test_names_that_are_gone(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    top = """
from transformers.utils import NoSuchThing, logging
from transformers.no_such_module import x
try:
    from transformers import NoSuchA
except ImportError:
    pass
if version > "5":
    from transformers import NoSuchB
def never():
    from transformers import NoSuchC
"""
    model = MODEL.replace("BODY", "from transformers import NoSuchD")
    other = MODEL.replace("class M", "class Other").replace(
        "BODY", "from transformers import NoSuchE"
    )
    code, loaded = repository(tmp_path, model=top + HEAD + model + other)
    found = {
        (item.module, item.name): item.certain for item in code_fit.missing_names(code, loaded)
    }
    assert found == {
        ("transformers.utils", "NoSuchThing"): True,
        ("transformers.no_such_module", None): True,
        ("transformers", "NoSuchD"): False,
    }


READ = 'self.kind = config.rope_scaling["type"]'
GUARDED = 'self.kind = None if config.rope_scaling is None else config.rope_scaling["type"]'
BLOCK = 'if config.rope_scaling:\n            self.kind = config.rope_scaling["type"]'
OTHER = 'if config.scaled:\n            self.kind = config.rope_scaling["type"]'
WRITES = 'config.rope_scaling["type"] = 1\n        self.kind = config.rope_scaling["type"]'
BEFORE = "self.rope_scaling = rope_scaling"


@pytest.mark.parametrize(
    ("body", "value", "before", "on_5", "on_4"),
    [
        (READ, None, BEFORE, True, False),
        (GUARDED, None, BEFORE, True, False),
        (BLOCK, None, BEFORE, True, False),
        (OTHER, None, BEFORE, False, False),
        (WRITES, None, BEFORE, False, False),
        (GUARDED, None, "pass", False, False),
        (GUARDED, {"type": "linear", "factor": 2.0}, BEFORE, False, False),
        (GUARDED, {"rope_type": "linear", "factor": 2.0}, BEFORE, True, True),
        ("self.k = config.rope_scaling.get('type')", None, BEFORE, False, False),
        ("self.k = config.rope_scaling['rope_type']", None, BEFORE, False, False),
    ],
)
def test_keys_that_the_config_does_not_have(
    tmp_path: Path, body: str, value: Any, before: str, on_5: bool, on_4: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As measured on transformers 4.37 to 5.23 by loading such code."""
    files = {
        "conf": CONFIG.replace("BEFORE", before).replace("AFTER", "pass"),
        "model": HEAD + MODEL.replace("BODY", body),
    }
    code, loaded = repository(tmp_path, **files)
    for rewrites, expected in ((True, on_5), (False, on_4)):
        monkeypatch.setattr(code_fit, "_rope_is_a_property", lambda answer=rewrites: answer)
        monkeypatch.setattr(code_fit, "_rope_keys", lambda: ("rope_type", "rope_theta"))
        found = code_fit.missing_keys(code, loaded, {"rope_scaling": value})
        assert bool(found) is expected, (rewrites, found)


def test_only_classes_that_are_used_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention classes come out of a table; a head that nobody asked for is nobody's matter."""
    model = (
        HEAD
        + "from .table import TABLE\n"
        + MODEL.replace("BODY", "self.a = TABLE['x'](config)")
        + "class Other(PreTrainedModel):\n    _tied_weights_keys = ['a']\n"
    )
    table = "class A:\n    _tied_weights_keys = ['lm_head.weight']\nTABLE = {'x': A}\n"
    code, loaded = repository(tmp_path, model=model, table=table)
    monkeypatch.setattr(code_fit, "_ties_by_dictionary", lambda: True)
    found = code_fit.tied_lists(code, loaded, {"tie_word_embeddings": True})
    assert [(item.class_name, item.tied) for item in found] == [("A", True)]
    other = loaded_code(code, (), "AutoModelForSequenceClassification")
    found = code_fit.tied_lists(code, other, {})
    assert [item.class_name for item in found] == ["Other"]
