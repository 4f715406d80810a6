"""What would be quantized, asked of the installed transformers, against what it does."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
transformers = pytest.importorskip("transformers")

SKIPS = [
    None,
    ["lm_head"],
    ["speech"],
    ["lora_A", "lora_B"],
    [r".*lora_[AB]"],
    ["layers.1"],
    ["q_proj", "lm_head"],
    ["model.layers.0.self_attn.v_proj"],
]


class Speaker(transformers.LlamaForCausalLM):  # type: ignore[misc, unused-ignore]
    """A model that wraps its own inner model while it is being built."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
        peft.get_peft_model(self.model, lora, adapter_name="speech")


def tiny() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return Speaker(config)


def quantizes_here() -> bool:
    from packaging.version import Version

    return Version(importlib.metadata.version("transformers")) >= Version("4.45")


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_asking_leaves_the_model_as_it_was(kind: Any) -> None:
    """The replacement is run on a shell of the tree; the module may be somebody else's."""
    from lora_doctor.model.quantization import Matcher

    model = tiny()
    before = [(name, id(module)) for name, module in model.named_modules()]
    matcher = Matcher(model, kind)
    assert matcher.default == ["lm_head"]
    assert matcher.quantized(None) == matcher.linears - {"lm_head"}
    assert [(name, id(module)) for name, module in model.named_modules()] == before


@pytest.mark.skipif(not quantizes_here(), reason="transformers before 4.45 wants a GPU for it")
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_the_answer_is_what_loading_does(tmp_path: Path, kind: Any) -> None:
    """For names that match on one release and not on the next: nothing here knows which."""
    from lora_doctor.model.quantization import Matcher

    model = tiny()
    model.save_pretrained(tmp_path, safe_serialization=True)
    matcher = Matcher(model, kind)
    for skip in SKIPS:
        options: dict[str, Any] = {f"load_in_{kind}": True}
        if skip is not None:
            options["llm_int8_skip_modules"] = list(skip)
        loaded = Speaker.from_pretrained(
            tmp_path,
            quantization_config=transformers.BitsAndBytesConfig(**options),
            device_map={"": "cpu"},
        )
        really = {
            name
            for name, module in loaded.named_modules()
            if type(module).__module__.startswith("bitsandbytes")
        }
        assert matcher.quantized(skip) == really, skip
