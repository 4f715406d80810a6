"""The report on ModifiedLISA: its table of memory, and its advice by the size of the GPU.

The table ("LLaVA 1.5 7B: 28 GB in fp32, 14 in bf16, 7 in 8 bits, 4 in 4 bits") is the weights
alone, in round numbers; a training step comes on top. "16 GB: use bf16 with LoRA" holds with
gradient checkpointing and one short sample, "8 GB: use 8 bits with LoRA" not even then: there
the 8-bit layers hold on to their inputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.sandbox.worker import Worker
from tests.scenario import holds, not_here, prove

pytestmark = pytest.mark.slow

REPORT = "ModifiedLISA"
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 32000,
    "image_seq_length": 576,
    "pad_token_id": 32001,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
    "torch_dtype": "float16",
    "text_config": {
        "model_type": "llama", "vocab_size": 32064, "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
    },
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
        "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
        "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
    },
}  # fmt: skip
#: The report's LoRA, on the language tower.
RECIPE: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "target_modules": r".*language_model.*\.(q_proj|v_proj)",
    "dtype": "bfloat16",
    "max_length": 1024,
    "per_device_train_batch_size": 1,
}
CHECKPOINTED = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
#: PEFT before 0.13 reads an attribute of the 8-bit layers that bitsandbytes has dropped since.
EIGHT_BITS = {"peft": ">=0.13"}


@pytest.fixture
def llava(tmp_path: Path) -> str:
    folder = tmp_path / "llava-1.5-7b-like"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAVA))
    return str(folder)


def test_bf16_on_16_gb_needs_checkpointing(llava: str, worker: Worker) -> None:
    """The report's own advice and batch size."""
    diagnosis = prove(
        REPORT, "LLaVA 1.5 7B in bf16 on a 16 GB GPU, batch of 1", "LD704",
        llava, {**RECIPE, "memory_budget": "16GB"}, worker=worker, occurs=True,
    )  # fmt: skip
    assert [item.fix.edits[0].key for item in diagnosis.applied] == ["gradient_checkpointing"]


def test_bf16_on_16_gb_with_long_batches_needs_4_bits(llava: str, worker: Worker) -> None:
    recipe = {
        **RECIPE, **CHECKPOINTED, "per_device_train_batch_size": 4, "max_length": 2048,
        "memory_budget": "16GB",
    }  # fmt: skip
    diagnosis = prove(
        REPORT, "LLaVA 1.5 7B in bf16 on a 16 GB GPU, batch of 4 x 2048", "LD704",
        llava, recipe, worker=worker, occurs=True,
    )  # fmt: skip
    assert diagnosis.fixed_recipe is not None
    fixed = diagnosis.fixed_recipe
    assert fixed.quantized == "4bit"
    assert fixed.get("per_device_train_batch_size") == 4 and fixed.get("max_length") == 2048


def test_8_bits_on_8_gb_do_not_do(llava: str, worker: Worker) -> None:
    failure = "LLaVA 1.5 7B in 8 bits on an 8 GB GPU, batch of 1"
    if not holds(EIGHT_BITS):
        not_here(REPORT, failure, "LD704", "8 bits do not run: PEFT is older than bitsandbytes")
    recipe = {**RECIPE, **CHECKPOINTED, "load_in_8bit": True, "memory_budget": "8GB"}
    diagnosis = prove(REPORT, failure, "LD704", llava, recipe, worker=worker, occurs=True)
    assert diagnosis.fixed_recipe is not None and diagnosis.fixed_recipe.quantized == "4bit"


def test_the_reports_table_is_the_weights_alone(llava: str, worker: Worker) -> None:
    """Within a fifth of the table by weights; what training takes lies well above it."""
    diagnosis = lora_doctor.check(llava, RECIPE, depth="meta", memory=True, worker=worker)
    plan = diagnosis.memory_plan
    assert plan is not None, diagnosis.gathered
    told = {"recipe": 14, "8-bit": 7, "4-bit": 4}
    for one in (plan.recipe, *plan.alternatives):
        if one.name not in told or (one.name == "8-bit" and not holds(EIGHT_BITS)):
            continue
        names = ("weights, quantized", "quantization constants", "weights, not quantized")
        weights = sum(part.bytes or 0 for part in one.parts if part.name in names)
        assert weights == pytest.approx(told[one.name] * 1e9, rel=0.2), one
        assert one.low > 1.4 * told[one.name] * 1e9
