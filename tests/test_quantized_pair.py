"""PEFT and bitsandbytes that do not fit each other: told without a GPU, and by the memory plan."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest

from lora_doctor.model.quantized_adapter import refusal
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.reports._memory import headline, variants
from lora_doctor.results.memory_plan import MemoryPart, MemoryPlan, MemoryVariant

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")

EIGHT = {"target_modules": ["q_proj"], "r": 4, "load_in_8bit": True}
FOUR = {"target_modules": ["q_proj"], "r": 4, "load_in_4bit": True}


def plainly(kind: str) -> str:
    """What PEFT raises for such a layer in a Llama, on the CPU."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    name, options = {
        "8bit": ("Linear8bitLt", {"has_fp16_weights": False}),
        "4bit": ("Linear4bit", {}),
    }[kind]
    layer = getattr(bitsandbytes.nn, name)(32, 32, bias=False, **options)
    model.model.layers[0].self_attn.q_proj = layer
    setattr(model, f"is_loaded_in_{kind}", True)
    try:
        peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    except AttributeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "recipe"), [("8bit", EIGHT), ("4bit", FOUR)])
def test_as_on_a_model(kind: Any, recipe: dict[str, Any]) -> None:
    said = refusal(kind, as_recipe(recipe))
    assert (said.message if said else "") == plainly(kind)


def test_a_release_that_takes_the_layer_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every stack: an attribute that PEFT reads is gone from bitsandbytes."""
    cls = bitsandbytes.nn.Linear8bitLt
    original = cls.__getattr__

    def without(self: Any, name: str) -> Any:
        if name == "state":
            raise AttributeError(f"'{type(self).__name__}' object has no attribute 'state'")
        return original(self, name)

    made = cls(8, 8, bias=False, has_fp16_weights=False)
    vars(made).pop("state")
    monkeypatch.setattr(cls, "__getattr__", without, raising=False)
    module = importlib.import_module("lora_doctor.model.quantized_adapter")
    monkeypatch.setattr(module, "_layer", lambda kind: made)
    said = refusal("8bit", as_recipe(EIGHT))
    assert said is not None and "state" in said.message


def test_an_adapter_on_no_layers_is_not_tried() -> None:
    prompt = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    assert refusal("8bit", as_recipe({**prompt, "load_in_8bit": True})) is None


def test_a_plan_that_counted_nothing_says_so() -> None:
    """Not "at least 0 MiB"."""
    nothing = MemoryVariant("recipe", {}, (MemoryPart("everything", None, "why", "missing"),))
    plan = MemoryPlan(1, 8, "", "", "adamw_torch", {}, nothing, (), budget=1 << 30)
    assert headline(plan) == "not known: why"
    assert variants(plan)[0][3] == "?"


@pytest.mark.parametrize("recipe", [EIGHT, FOUR])
def test_what_reads_the_values_of_a_layer_is_no_refusal(recipe: dict[str, Any]) -> None:
    """DoRA takes the norm of the weight, which the layer that is tried does not have."""
    kind: Any = "8bit" if recipe.get("load_in_8bit") else "4bit"
    plain = refusal(kind, as_recipe(recipe))
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    if "use_dora" not in fields:
        pytest.skip("this PEFT has no DoRA")
    said = refusal(kind, as_recipe({**recipe, "use_dora": True}))
    assert (said.message if said else "") == (plain.message if plain else "")
