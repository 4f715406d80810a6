"""A checkpoint without a file of weights at hand: what it lacks is known of the class that its
config says it was saved from, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.recipe import make_recipe
from lora_doctor.results.loading import Loading
from lora_doctor.static.model_source import ModelSource

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

_LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip
_BERT = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "vocab_size": 64,
}  # fmt: skip


def loading(
    folder: Path, config: dict[str, Any], saved: str, model_class: str, **recipe: Any
) -> Loading:
    """What is known of a folder that has a config alone."""
    from lora_doctor.evidence.loading import gather
    from lora_doctor.results.from_json import from_json

    text = json.dumps({**config, "architectures": [saved]})
    (folder / "config.json").write_text(text, encoding="utf-8")
    source = ModelSource("folder", str(folder), folder=str(folder)).for_child()
    values = {"model_class": model_class, "r": 4, **recipe}
    plan = make_recipe(values, where="test", origin="argument", complete=True)
    return from_json(Loading, gather(source, plan.to_json(), None, saved_class=saved))


def test_the_head_that_the_saved_class_has_none_of(tmp_path: Path) -> None:
    found = loading(
        tmp_path, _LLAMA, "LlamaForCausalLM", "LlamaForSequenceClassification",
        target_modules=["q_proj"],
    )  # fmt: skip
    assert found.saved_class == "LlamaForCausalLM"
    assert [one.pattern for one in found.missing] == ["score.weight"]
    assert found.unsaved.modules == ("score",)


def test_a_head_that_is_trained_is_saved(tmp_path: Path) -> None:
    found = loading(
        tmp_path, _LLAMA, "LlamaForCausalLM", "LlamaForSequenceClassification",
        target_modules=["q_proj"], task_type="SEQ_CLS",
    )  # fmt: skip
    assert [one.pattern for one in found.missing] == ["score.weight"]
    assert not found.unsaved.modules


def test_a_base_model_was_saved(tmp_path: Path) -> None:
    found = loading(
        tmp_path, _BERT, "BertModel", "BertForTokenClassification", target_modules=["query"]
    )
    assert found.unsaved.modules == ("classifier",)


def test_nothing_is_said_of_the_pooler_that_another_head_needs(tmp_path: Path) -> None:
    """bert-base-uncased says BertForMaskedLM, and has the pooler all the same."""
    found = loading(
        tmp_path, _BERT, "BertForMaskedLM", "BertForSequenceClassification",
        target_modules=["query"],
    )  # fmt: skip
    assert found.unsaved.modules == ("classifier",)
    assert not any("pooler" in one.pattern for one in found.missing)


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        ("BertForMaskedLM", "BertForPreTraining"),
        ("LlamaForCausalLM", "LlamaForCausalLM"),
        ("LlavaLlamaForCausalLM", "LlamaForCausalLM"),
        ("LlamaForCausalLM", "LlamaModel"),
    ],
)
def test_what_a_class_does_not_tell(saved: str, wanted: str, tmp_path: Path) -> None:
    """The same head by its name, the same class, a class of nobody's, a base model."""
    config = _BERT if saved.startswith("Bert") else _LLAMA
    if saved == "BertForMaskedLM":
        assert not loading(tmp_path, config, saved, wanted, target_modules=["query"]).missing
        return
    with pytest.raises(EvidenceError, match=r"not known|no class|no base model"):
        loading(tmp_path, config, saved, wanted, target_modules=["q_proj"])


def test_names_of_a_model_whose_adapters_are_there() -> None:
    import peft
    import transformers

    from lora_doctor.contract.random_weights import RandomWeights, parameters_of_base

    config = {**_LLAMA, "num_labels": 3}
    base = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**config))
    names = [name for name, _ in base.named_parameters()]
    frozen = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "score"]))
    assert list(parameters_of_base(frozen)) == names
    assert RandomWeights(frozen, {"score.weight": True}).unsaved(frozen).modules == ("score",)
    base = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**config))
    saved = peft.get_peft_model(base, peft.LoraConfig(r=4, task_type="SEQ_CLS"))
    assert sorted(parameters_of_base(saved)) == sorted(names)
    assert not RandomWeights(saved, {"score.weight": True}).unsaved(saved).modules
