"""Scripts that call transformers' own methods for adapters, on a pair that does not fit."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from packaging.version import Version

import lora_doctor
from lora_doctor.engine.registry import find_rules
from lora_doctor.engine.symptoms import find_by_message
from lora_doctor.static.installed.peft_minimum import peft_minimum

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

LOAD = "from transformers import AutoModelForCausalLM\n"

#: Scripts, and the line of the call that raises on a pair that does not fit; none where PEFT's
#: own methods are called, or nobody knows whose.
SCRIPTS = {
    "in the file": (
        f"{LOAD}model = AutoModelForCausalLM.from_pretrained('x')\nmodel.add_adapter(config)\n",
        3,
    ),
    "in a with block": (
        f"import torch\n{LOAD}with torch.device('meta'):\n"
        "    model = AutoModelForCausalLM.from_config(c)\nmodel.add_adapter(config)\n",
        5,
    ),
    "in a function": (
        "import transformers\ndef build(name):\n"
        "    net = transformers.LlamaForCausalLM.from_pretrained(name)\n"
        "    net.add_adapter(config, adapter_name='a')\n    return net\n",
        4,
    ),
    "a PeftModel": (
        f"{LOAD}from peft import get_peft_model\n"
        "model = AutoModelForCausalLM.from_pretrained('x')\n"
        "model = get_peft_model(model, config)\nmodel.add_adapter('second', config)\n",
        None,
    ),
    "an argument": ("def add(model):\n    model.add_adapter(config)\n", None),
    "another library": (
        "from adapters import AutoAdapterModel\n"
        "model = AutoAdapterModel.from_pretrained('x')\nmodel.add_adapter('name')\n",
        None,
    ),
}


def fits() -> bool:
    minimum = peft_minimum()
    assert minimum is not None and "add_adapter" in minimum.methods
    return Version(importlib.metadata.version("peft")) >= Version(minimum.version)


def test_the_minimum_is_what_transformers_says() -> None:
    minimum = peft_minimum()
    assert minimum is not None
    assert minimum.version == transformers.integrations.peft.MIN_PEFT_VERSION


@pytest.mark.parametrize("name", SCRIPTS)
def test_whose_method_it_is(name: str, tmp_path: Path) -> None:
    text, line = SCRIPTS[name]
    script = tmp_path / "train.py"
    script.write_text(text)
    found = lora_doctor.check(str(script), depth="static", select=("LD705",)).findings
    assert [one.location.line for one in found] == ([] if fits() or line is None else [line])


def test_an_older_peft_than_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a pair that fits, too: with another number in the source of transformers."""
    from lora_doctor.static.installed import peft_minimum as module

    folder = tmp_path / "transformers"
    (folder / "integrations").mkdir(parents=True)
    real = Path(transformers.integrations.peft.__file__).read_text("utf-8")
    minimum = transformers.integrations.peft.MIN_PEFT_VERSION
    (folder / "integrations" / "peft.py").write_text(real.replace(minimum, "99.1"))
    monkeypatch.setattr(module, "package_folder", lambda name: folder)
    peft_minimum.cache_clear()
    try:
        script = tmp_path / "train.py"
        script.write_text(SCRIPTS["in the file"][0])
        (found,) = lora_doctor.check(str(script), depth="static", select=("LD705",)).findings
    finally:
        peft_minimum.cache_clear()
    assert "PEFT 99.1" in found.message and "peft>=99.1" in found.fixes[0].title


def test_the_message_is_explained() -> None:
    check = transformers.utils.peft_utils.check_peft_version
    with pytest.raises(ValueError, match="not compatible") as raised:
        check("99.0")
    codes = [match.rule.code for match in find_by_message(str(raised.value), find_rules())]
    assert codes[0] == "LD705"
