"""Features reach a model in half precision as processors return them: in float32."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from packaging.version import Version

import lora_doctor
from lora_doctor.contract.precision import Precision
from lora_doctor.evidence.sent_batch import as_sent
from lora_doctor.results.note import Note
from lora_doctor.sandbox.worker import Worker
from lora_doctor.tiny_model.batch.result import Batch

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8,
        max_source_positions=10, max_target_positions=10, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).to(torch.bfloat16)


def spoken() -> Batch:
    inputs = {
        "input_features": torch.randn(1, 8, 20),
        "labels": torch.tensor([[3, 4, 5]]),
    }
    return Batch(inputs, ["audio"], "labels")


@pytest.mark.parametrize(("autocast", "told"), [(None, True), ("bfloat16", False)])
def test_a_model_that_does_not_cast_is_told(autocast: Any, told: bool) -> None:
    model, notes = whisper(), list[Note]()
    with pytest.raises(RuntimeError, match="should be the same"):
        model(**spoken().inputs)
    sent = as_sent(model, spoken(), "bfloat16", Precision("cpu", autocast), notes)
    assert sent.inputs["input_features"].dtype is torch.bfloat16
    assert [note.kind for note in notes] == (["features-cast"] if told else [])


def test_a_model_that_casts_gets_what_the_processor_returns() -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).to(torch.bfloat16)
    batch = Batch({"pixel_values": torch.randn(1, 3, 16, 16)}, ["image"], "surrogate")
    notes: list[Note] = []
    try:
        model(**batch.inputs)
    except (RuntimeError, ValueError):
        pytest.skip("this transformers casts no pixel values")
    sent = as_sent(model, batch, "bfloat16", Precision("cpu"), notes)
    assert sent.inputs["pixel_values"].dtype is torch.float32 and not notes


def test_whisper_in_8_bits_trains(worker: Worker) -> None:
    """Its convolutions are float32 after the preparation; features that were cast broke it."""
    pytest.importorskip("bitsandbytes")
    if Version(version("peft")) < Version("0.8"):
        pytest.skip("PEFT 0.7 does not fit today's bitsandbytes (LD314)")
    recipe = {"target_modules": ["q_proj", "v_proj"], "load_in_8bit": True, "dtype": "float16"}
    diagnosis = lora_doctor.check("arch:whisper", recipe, worker=worker)
    codes = {finding.rule for finding in diagnosis.findings}
    assert not codes, diagnosis.findings
    assert diagnosis.before is not None
    unproven = [note.reason for note in diagnosis.before.notes if note.is_unproven]
    assert not any("should be the same" in reason for reason in unproven), unproven
