"""Trainers that refuse what they are given, made by their own class, where TRL is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import lora_doctor
from lora_doctor.results.diagnosis import Diagnosis

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("trl", "datasets")),
    reason="needs TRL",
)
HEAD = """\
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
config = LoraConfig(r=4, target_modules=["qkv_proj"], task_type="CAUSAL_LM")
"""


def check(tmp_path: Path, call: str) -> Diagnosis:
    path = tmp_path / "train.py"
    folder = Path(__file__).resolve().parents[1] / "examples" / "phi3-mini"
    path.write_text(HEAD.replace("FOLDER", str(folder)) + call, encoding="utf-8")
    return lora_doctor.check(str(path), depth="tiny", select=["LD550"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            'DPOTrainer(model, args=DPOConfig("out", sync_ref_model=True), '
            "train_dataset=load(), peft_config=config)\n",
            "sync_ref_model=True",
        ),
        (
            'SFTTrainer(model, args=SFTConfig("out", completion_only_loss=True), '
            "train_dataset=load(), peft_config=config, formatting_func=lambda row: row)\n",
            "formatting function",
        ),
    ],
)
def test_what_the_trainer_refuses(tmp_path: Path, call: str, said: str) -> None:
    """Each value is valid by itself; the trainer says that they do not go together."""
    (finding,) = check(tmp_path, call).findings
    assert finding.rule == "LD550" and said in finding.message
    assert finding.location.line == 7


def test_what_the_trainer_takes(tmp_path: Path) -> None:
    """Rows of a kind that it does not take say nothing about the set-up."""
    call = (
        'SFTTrainer(model, args=SFTConfig("out", assistant_only_loss=True, packing=True), '
        "train_dataset=load(), peft_config=config)\n"
    )
    diagnosis = check(tmp_path, call)
    assert not diagnosis.findings
    assert "LD550" in diagnosis.passed


_ROWS = """\
from datasets import Dataset

rows = Dataset.from_list([{ROW} for n in range(8)])
SFTTrainer(model, args=SFTConfig("out"), train_dataset=rows, peft_config=config)
"""


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('"question": f"{n}?", "answer": f"{n}!"', "no column 'text'"),
        ('"prompt": f"{n}?", "completion": n', ""),
        ('"prompt": f"{n}?", "completion": f"{n}!"', None),
    ],
)
def test_rows_that_the_script_writes_out(tmp_path: Path, row: str, said: str | None) -> None:
    """They go through the trainer's own preparation with the model's tokenizer."""
    found = check(tmp_path, _ROWS.replace("ROW", row)).findings
    assert len(found) == (said is not None)
    assert said is None or ("cannot make samples" in found[0].message and said in found[0].message)


def test_rows_are_not_blamed_for_what_every_row_raises(tmp_path: Path) -> None:
    """The adapter matches no layer, which another rule tells."""
    call = _ROWS.replace("ROW", '"prompt": f"{n}?", "completion": f"{n}!"')
    head = HEAD.replace("qkv_proj", "query")
    path = tmp_path / "train.py"
    folder = Path(__file__).resolve().parents[1] / "examples" / "phi3-mini"
    path.write_text(head.replace("FOLDER", str(folder)) + call, encoding="utf-8")
    diagnosis = lora_doctor.check(str(path), depth="tiny", select=["LD201", "LD550"])
    assert [finding.rule for finding in diagnosis.findings] == ["LD201"]


_PICTURES = """\
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

model = AutoModelForImageTextToText.from_pretrained("FOLDER")
config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
SFTTrainer(model, args=SFTConfig("out", completion_only_loss=True, max_length=None),
           train_dataset=load(), peft_config=config, MORE
           processing_class=AutoProcessor.from_pretrained("FOLDER"))
"""


def test_the_trainer_of_a_model_of_pictures(tmp_path: Path) -> None:
    """It is created with a processor, as TRL asks for where a model takes images."""
    folder = tmp_path / "smolvlm"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 4}  # fmt: skip
    transformers = pytest.importorskip("transformers")
    text = {**sizes, "model_type": "llama", "vocab_size": 99, "num_key_value_heads": 4}
    vision = {**sizes, "image_size": 16, "patch_size": 4}
    config = transformers.SmolVLMConfig(
        text_config=text, vision_config=vision, image_token_id=98, scale_factor=2
    )
    transformers.SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    for more, refused in (("formatting_func=lambda row: row,", True), ("", False)):
        path = tmp_path / "train.py"
        path.write_text(_PICTURES.replace("FOLDER", str(folder)).replace("MORE", more))
        diagnosis = lora_doctor.check(str(path), depth="tiny", select=["LD550"])
        assert ("LD550" in [one.rule for one in diagnosis.findings]) is refused
        assert ("LD550" in diagnosis.passed) is not refused


QUANTIZED = """\
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

model = AutoModelForCausalLM.from_pretrained(
    "FOLDER", quantization_config=BitsAndBytesConfig(load_in_4bit=True)
)
config = LoraConfig(r=4, target_modules=["qkv_proj"], task_type="CAUSAL_LM")
trainer = KINDTrainer(model, args=KINDConfig("out", HALF=True), train_dataset=load(),
                      peft_config=config)
LAST
trainer.train()
"""
CASTS = """\
for weight in trainer.model.parameters():
    if weight.requires_grad:
        weight.data = weight.data.to(torch.float32)
"""


@pytest.mark.parametrize(
    ("kind", "half", "last", "found"),
    [
        ("SFT", "fp16", "", True),
        ("DPO", "fp16", "", True),
        ("SFT", "fp16", CASTS, False),
    ],
)
def test_adapters_that_the_trainer_casts_under_a_scaler(
    tmp_path: Path, kind: str, half: str, last: str, found: bool
) -> None:
    """TRL's trainers cast the adapters of a quantized model to bfloat16, whatever fp16 says."""
    path = tmp_path / "train.py"
    folder = Path(__file__).resolve().parents[1] / "examples" / "phi3-mini"
    text = QUANTIZED.replace("FOLDER", str(folder)).replace("KIND", kind).replace("HALF", half)
    path.write_text(text.replace("LAST", last), encoding="utf-8")
    findings = lora_doctor.check(str(path), depth="tiny", select=["LD421"]).findings
    assert [one.rule for one in findings] == ["LD421"] * found
