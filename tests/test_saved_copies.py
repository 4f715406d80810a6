"""`modules_to_save` whose entries name more than was meant: the verdict is what plain PEFT does."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest

import lora_doctor
from lora_doctor.model.loose_matches import loose_matches

SIZES = {
    "attn": 10,
    "model": 100,
    "model.layers": 60,
    "model.layers.0": 30,
    "model.layers.0.self_attn": 20,
    "model.layers.0.self_attn.q_proj": 10,
    "model.layers.0.input_norm": 1,
    "model.layers.1": 30,
    "model.layers.1.self_attn": 20,
    "model.layers.1.self_attn.q_proj": 10,
    "model.layers.1.input_norm": 1,
    "model.norm": 1,
    "lm_head": 40,
}
ADAPTED = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]


def test_what_an_entry_names_by_the_end_only() -> None:
    attn, norm = loose_matches(["attn", "norm", "lm_head", "head"], SIZES, ADAPTED, None)
    assert (attn.entry, attn.patterns) == ("attn", ("model.layers.*.self_attn",))
    assert (attn.modules, attn.parameters, attn.blocks) == (2, 40, True)
    assert attn.adapted == ("model.layers.*.self_attn.q_proj",)
    assert (attn.meant, attn.meant_parameters) == (("attn",), 10)
    assert (norm.modules, norm.blocks, norm.adapted, norm.meant) == (2, False, (), ("model.norm",))


def test_only_what_peft_copied_counts() -> None:
    assert loose_matches(["attn"], SIZES, ADAPTED, {"attn"}) == ()


def _llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4,
        )
    )  # fmt: skip


def _works(targets: list[str], saved: list[str]) -> bool:
    """Whether plain PEFT trains a step and loads what it saved."""
    import peft
    import torch

    config = peft.LoraConfig(r=4, target_modules=targets, modules_to_save=saved)
    ids = torch.arange(3, 19).reshape(2, 8)
    try:
        model = peft.get_peft_model(_llama(), config)
        model(input_ids=ids, labels=ids).loss.backward()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = peft.PeftModel.from_pretrained(_llama(), folder).eval()
        return bool(torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits))
    except (KeyError, TypeError, AttributeError, ValueError):
        return False


@pytest.mark.parametrize(
    ("targets", "saved", "code"),
    [
        (["q_proj", "v_proj"], ["attn"], "LD215"),
        (["q_proj"], ["embed_tokens", "attn"], "LD215"),
        (["q_proj", "v_proj"], ["self_attn"], "LD216"),
        (["q_proj", "o_proj"], ["proj"], "LD205 LD215"),  # which, depends on what PEFT raises
        (["q_proj"], ["norm"], ""),
        (["q_proj"], ["head"], ""),
        (["q_proj"], ["mlp"], ""),
    ],
)
def test_an_error_where_plain_peft_fails(targets: list[str], saved: list[str], code: str) -> None:
    assert _works(targets, saved) == (not code)
    recipe = {"task_type": None, "target_modules": targets, "modules_to_save": saved}
    found = lora_doctor.check(_llama(), recipe, depth="meta").findings
    errors = [item.rule for item in found if item.severity == "error"]
    assert len(errors) == bool(code) and all(rule in code for rule in errors)
