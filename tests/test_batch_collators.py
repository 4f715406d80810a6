"""Whether somebody sends what a batch was given because forward raised without it."""

from __future__ import annotations

from typing import Any

import pytest

from lora_doctor.rules.ld110_input_not_sent_for_text import InputNotSentForText
from lora_doctor.tiny_model.batch.collators import added_inputs
from lora_doctor.tiny_model.batch.make_batch import make_batch


def _bert(marks: str) -> Any:
    """A masked language model that raises in training without an argument of this name."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    class Strict(BertForMaskedLM):
        def forward(
            self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None,
            mm_token_type_ids: Any = None, labels: Any = None, **kwargs: Any,
        ) -> Any:  # fmt: skip
            given = {"token_type_ids": token_type_ids, "mm_token_type_ids": mm_token_type_ids}
            if self.training and given[marks] is None:
                raise ValueError(f"`{marks}` is required as a model input when training")
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
            )

    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    return Strict(sizes)


@pytest.mark.parametrize(
    ("marks", "sent"), [("token_type_ids", True), ("mm_token_type_ids", False)]
)
def test_what_the_tokenizer_sends(marks: str, sent: bool) -> None:
    """BERT's tokenizer returns token types, and marks no images."""
    model = _bert(marks)
    batch = make_batch(model)
    assert batch.added == (marks,)
    (added,) = added_inputs(model, batch.added)
    assert (added.by_tokenizer, added.processor) == (sent, "")
    assert added.tokenizer.startswith("BertTokenizer")


def test_a_batch_that_needs_nothing_more() -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    assert make_batch(BertForMaskedLM(sizes)).added == ()


def test_what_the_collator_for_decoders_makes() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    (added,) = added_inputs(T5ForConditionalGeneration(sizes), ["decoder_input_ids"])
    assert added.by_tokenizer


def test_no_word_of_a_class_without_a_tokenizer() -> None:
    import torch

    assert added_inputs(torch.nn.Linear(2, 2), ["token_type_ids"]) == ()


def test_the_message_is_known() -> None:
    import re

    said = "ValueError: `token_type_ids` is required as a model input when training"
    assert any(re.search(symptom.pattern, said) for symptom in InputNotSentForText.symptoms)


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_an_image_comes_with_what_its_processor_makes(name: str) -> None:
    """Both processors return the marks of the image, or of the answer, beside the ids; forward
    takes a batch without them, and masks it otherwise."""
    import transformers
    from transformers import CONFIG_MAPPING

    if name not in CONFIG_MAPPING:
        pytest.skip("this transformers has no such model")
    text = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    ids = {"gemma3": {"mm_tokens_per_image": 4}, "paligemma": {"projection_dim": 16}}[name]
    which = "image_token_index"
    config = CONFIG_MAPPING[name](text_config=text, vision_config=vision, **{which: 60}, **ids)
    prefix = {"gemma3": "Gemma3", "paligemma": "PaliGemma"}[name]
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    batch = make_batch(model, modality="image")
    assert "token_type_ids" in batch.inputs and batch.added == ()
    marks, ids_given = batch.inputs["token_type_ids"], batch.inputs["input_ids"]
    images = ids_given == 60
    expected = images if name == "gemma3" else ~images
    assert (marks[images] == int(name == "gemma3")).all() and expected.any()
