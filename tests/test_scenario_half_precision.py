"""What float16, attention and scaling do to the models of two reports.

"Gemma 3 in SALMONN" blamed epsilons for overflowing activations, clamped them, and took a quarter
of `lora_alpha` for stability. "ModifiedLISA" found "LoRA not working with FP16".
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest

from lora_doctor.isolation import Worker
from tests import models, scenario

pytestmark = pytest.mark.slow

LISA = "ModifiedLISA"
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


def before(package: str, version: str) -> bool:
    from packaging.version import Version

    return Version(importlib.metadata.version(package)) < Version(version)


# --- adapters in float16 under a gradient scaler ------------------------------------------------


def one_step_with_a_scaler(make: Callable[[], Any]) -> Callable[[], None]:
    """The first step of a training script with ``fp16=True``, by torch alone."""

    def run() -> None:
        import torch

        model = make()
        ids = torch.randint(3, 60, (2, 6))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        with torch.autocast("cpu", torch.float16):
            loss = model(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)

    return run


def half_llama(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import peft

        config = peft.LoraConfig(task_type="CAUSAL_LM", **LORA, **options)
        return peft.get_peft_model(models.tiny_llama().half(), config)

    return make


def test_adapters_on_a_float16_model(worker: Worker) -> None:
    """PEFT 0.12 began to make adapters float32; before, the report's recipe never takes a step."""
    scenario.prove(
        LISA, "LoRA on a float16 model with fp16=True", "LD406",
        "arch:llama", {**LORA, "dtype": "float16", "fp16": True}, worker=worker,
        occurs=before("peft", "0.12"), plainly=one_step_with_a_scaler(half_llama()),
    )  # fmt: skip


def test_modules_to_save_on_a_float16_model(worker: Worker) -> None:
    """The copy of the head is float16 whatever PEFT does for LoRA's weights."""
    scenario.prove(
        LISA, "modules_to_save on a float16 model with fp16=True", "LD406",
        "arch:llama", {**LORA, "modules_to_save": ["lm_head"], "dtype": "float16", "fp16": True},
        worker=worker, occurs=True,
        plainly=one_step_with_a_scaler(half_llama(modules_to_save=["lm_head"])),
    )  # fmt: skip


def test_a_wrapped_model_that_was_halved(worker: Worker) -> None:
    scenario.prove(
        LISA, ".half() after get_peft_model, with fp16=True", "LD406",
        models.halved_after_wrapping(), None, worker=worker, occurs=True,
        plainly=one_step_with_a_scaler(models.halved_after_wrapping),
        by_hand=(models.halved_and_cast_back(), None),
    )  # fmt: skip
