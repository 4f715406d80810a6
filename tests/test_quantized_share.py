"""How much of a model 4-bit and 8-bit loading quantizes: what is counted on the meta device is what
plain transformers and bitsandbytes do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
bitsandbytes = pytest.importorskip("bitsandbytes")

TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", TEXT),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**TEXT, "num_local_experts": 4}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4,
                                              "vocab_size": 128}),
    "resnet": ("ResNetConfig", "ResNetForImageClassification",
               {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
                "layer_type": "basic"}),
}  # fmt: skip


def build(name: str) -> Any:
    config, cls, values = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, cls)(getattr(transformers, config)(**values))


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("name", list(MODELS))
def test_what_is_counted_is_what_loading_quantizes(name: str, kind: Any, tmp_path: Path) -> None:
    """In weights: a layer of a thousand numbers is not one of a million."""
    from lora_doctor.model.quantization import Matcher
    from lora_doctor.model.quantized_share import count_weights

    model = build(name)
    matcher = Matcher(model, kind)
    counted = count_weights(model, matcher.linears, matcher.quantized(None))
    model.save_pretrained(tmp_path, safe_serialization=True)
    quantization = transformers.BitsAndBytesConfig(**{f"load_in_{kind}": True})
    try:
        loaded = type(model).from_pretrained(
            tmp_path, quantization_config=quantization, device_map={"": "cpu"}
        )
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"this transformers does not quantize here: {error}")
    shapes = dict(model.named_parameters())
    really = sum(
        shapes[f"{path}.weight"].numel()
        for path, module in loaded.named_modules()
        if type(module).__module__.startswith("bitsandbytes")
    )
    assert counted.quantized == really
    assert counted.weights == counted.quantized + sum(one.weights for one in counted.kept)


def test_experts_that_are_one_parameter_are_named_with_their_size(worker: Worker) -> None:
    """Mixtral in 4 bits: who reads `load_in_4bit` plans with 24 GiB."""
    diagnosis = lora_doctor.check(
        "arch:mixtral",
        {"target_modules": ["q_proj", "v_proj"], "load_in_4bit": True},
        depth="meta",
        worker=worker,
    )
    found = [finding for finding in diagnosis.findings if finding.rule == "LD313"]
    groups = diagnosis.structure.groups if diagnosis.structure else ()
    fused = [group for group in groups if group.kind == "parameter" and group.role == "experts"]
    assert bool(found) == bool(fused)
    if found:
        assert "45.1 billion of 46.4 billion" in found[0].message
        assert "parameters, not layers" in str(found[0].evidence[0].value)


def test_a_skip_list_of_the_users_own_is_no_finding(worker: Worker) -> None:
    """What somebody left out on purpose is not reported back."""
    recipe = {
        "target_modules": ["q_proj", "v_proj"],
        "load_in_4bit": True,
        "llm_int8_skip_modules": ["lm_head", "mlp"],
    }
    diagnosis = lora_doctor.check("arch:llama", recipe, depth="meta", worker=worker)
    assert "LD313" not in {finding.rule for finding in diagnosis.findings}
