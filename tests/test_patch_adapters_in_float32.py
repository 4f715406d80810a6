"""Adapters on a float16 model become float32 where PEFT leaves them as they are, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_doctor.prescription import patches
from lora_doctor.prescription.patches import adapters_in_float32
from lora_doctor.recipe.edit import Patch
from tests.models import tiny_llama

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

PATCH = Patch("adapters_in_float32")


def wrapped(**options: Any) -> Any:
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM", **options
    )
    return peft.get_peft_model(tiny_llama().half(), config)


def batch() -> dict[str, Any]:
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def adapter_dtypes(model: Any) -> set[Any]:
    return {value.dtype for name, value in model.named_parameters() if "lora_" in name}


def test_adapters_learn_under_a_scaler_and_the_rest_stays(tmp_path: Path) -> None:
    """Whatever PEFT does by itself: with the patch it is this on every stack."""
    undo = patches.install(PATCH)
    try:
        model = wrapped()
        assert adapter_dtypes(model) == {torch.float32}
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
        assert frozen == {torch.float16}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        losses = []
        for _ in range(8):
            loss = model(**batch()).loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        model.eval()
        learnt = model(**batch()).logits
        model.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(tiny_llama().half(), tmp_path).eval()
        assert adapter_dtypes(again) == {torch.float32}
        assert torch.equal(again(**batch()).logits, learnt)
    finally:
        undo()


def test_a_second_adapter_is_cast_and_the_first_one_stays() -> None:
    """PEFT before 0.12 casts the whole layer, the first adapter too, to the dtype of the base."""
    if not adapters_in_float32.is_needed():
        pytest.skip("this PEFT casts by itself")
    undo = patches.install(PATCH)
    try:
        model = wrapped()
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    finally:
        undo()
    assert adapter_dtypes(model) == {torch.float32}


def test_where_peft_casts_by_itself_nothing_is_changed() -> None:
    before = (peft.PeftModel.__init__, peft.PeftModel.add_adapter)
    undo = patches.install(PATCH)
    assert (peft.PeftModel.__init__ is before[0]) is not adapters_in_float32.is_needed()
    undo()
    assert (peft.PeftModel.__init__, peft.PeftModel.add_adapter) == before


def test_modules_that_are_trained_as_a_whole_keep_their_dtype() -> None:
    """A float32 head in a float16 model does not run: nobody casts its input."""
    undo = patches.install(PATCH)
    try:
        model = wrapped(modules_to_save=["lm_head"])
        model(**batch()).loss.backward()
    finally:
        undo()
    heads = {p.dtype for n, p in model.named_parameters() if "modules_to_save" in n}
    assert heads == {torch.float16}
