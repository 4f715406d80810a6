"""What the documentation of forward says about inputs and labels is believed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from lora_doctor.tiny_model.batch.loss import batch_loss  # noqa: E402
from lora_doctor.tiny_model.batch.make_batch import make_batch  # noqa: E402
from lora_doctor.tiny_model.batch.result import BatchError  # noqa: E402
from lora_doctor.tiny_model.shrink.shrink import shrink  # noqa: E402


def _small(config: str, model: str, **entries: Any) -> Any:
    if not hasattr(transformers, model):
        pytest.skip(f"no {model} in this transformers")
    cls = getattr(transformers, model)
    return shrink(getattr(transformers, config)(**entries), cls._from_config).model


@pytest.mark.parametrize(
    ("config", "model", "dimensions", "floating"),
    [
        ("SpeechT5Config", "SpeechT5ForTextToSpeech", 3, True),
        ("DistilBertConfig", "DistilBertForMaskedLM", 2, False),
        ("BertConfig", "BertForMaskedLM", 2, False),
    ],
)
def test_labels_have_the_documented_shape(
    config: str, model: str, dimensions: int, floating: bool
) -> None:
    made = make_batch(_small(config, model))
    assert made.loss == "labels"
    assert made.inputs["labels"].dim() == dimensions
    assert made.inputs["labels"].is_floating_point() == floating


def test_labels_have_a_code_for_each_codebook() -> None:
    name = "MusicgenForConditionalGeneration"
    if not hasattr(transformers, name):
        pytest.skip(f"no {name} in this transformers")
    parts = {
        "text_encoder": transformers.T5Config().to_dict(),
        "audio_encoder": transformers.EncodecConfig().to_dict(),
        "decoder": transformers.MusicgenDecoderConfig().to_dict(),
    }
    model = _small("MusicgenConfig", name, **parts)
    made = make_batch(model)
    codebooks = model.config.decoder.num_codebooks
    code = inspect.getsource(inspect.getmodule(type(model)) or transformers)
    if "Training is not implemented" in code:
        pytest.skip("this MusicGen takes no labels yet (transformers 4.37)")
    assert made.loss == "labels"
    assert made.inputs["labels"].shape[-1] == codebooks
    assert torch.isfinite(batch_loss(model, made))


def test_several_texts_to_choose_from_and_a_mask_that_forward_cannot_make_itself() -> None:
    model = _small("LongformerConfig", "LongformerForMultipleChoice")
    made = make_batch(model)
    attends_everywhere = made.inputs["global_attention_mask"]
    assert made.inputs["input_ids"].dim() == attends_everywhere.dim() == 3
    assert 0 < int(attends_everywhere.sum()) < attends_everywhere.numel()
    assert made.loss == "labels"


class _Questions(torch.nn.Module):
    """Scores at some places of one text, as a decision head has them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(64, 8)
        self.score = torch.nn.Linear(8, 4)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embed

    def forward(
        self, input_ids: torch.LongTensor, marks: torch.LongTensor, num_options: torch.LongTensor
    ) -> Any:
        """
        marks (`torch.LongTensor` of shape `(num_marks,)`):
            Places in the text.
        num_options (`torch.LongTensor` of shape `(num_questions,)`):
            How many options each question has.
        """
        marks, counts = marks[0], num_options[0]
        scores = self.score(self.embed(input_ids)[0][marks])
        return scores[torch.arange(4) < counts[:, None]]


def test_a_batch_is_told_by_the_code_and_what_is_counted_is_there() -> None:
    model = _Questions()
    made = make_batch(model)
    assert made.inputs["marks"].dim() == 2
    assert int(made.inputs["num_options"].min()) > 0
    assert batch_loss(model, made).requires_grad


@pytest.mark.parametrize(
    ("config", "model", "places"),
    [
        ("ViTMAEConfig", "ViTMAEForPreTraining", 0),
        ("VideoMAEConfig", "VideoMAEForPreTraining", 128),
    ],
)
def test_a_loss_that_needs_no_labels_is_the_one_to_train_on(
    config: str, model: str, places: int
) -> None:
    """Masked autoencoders; those of videos hide patches of all frames."""
    small = _small(config, model)
    made = make_batch(small)
    assert made.loss == "its own"
    assert torch.allclose(
        batch_loss(small.eval(), made).detach(), small(**made.inputs).loss, atol=1
    )
    if places:
        assert made.inputs["bool_masked_pos"].shape[-1] == places


def test_features_of_an_image_are_given_where_they_cannot_be_none() -> None:
    made = make_batch(_small("LxmertConfig", "LxmertForPreTraining"))
    assert {"visual_feats", "visual_pos"} <= made.inputs.keys()
    assert made.loss == "labels"


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ("PerceiverConfig", "PerceiverForMaskedLM"),  # as many places as it has, whatever it reads
        ("Qwen3_5Config", "Qwen3_5ForSequenceClassification"),  # the base class takes the labels
    ],
)
def test_labels_that_the_text_and_the_signature_do_not_tell(config: str, model: str) -> None:
    assert make_batch(_small(config, model)).loss == "labels"


def test_a_forecast_is_compared_with_values_of_its_own_shape() -> None:
    made = make_batch(_small("TimesFmConfig", "TimesFmModelForPrediction"))
    assert made.loss == "future_values"


def test_a_model_of_parts_that_only_generates_says_so() -> None:
    """Bark, Qwen2.5-Omni: what is trained is one of its parts."""

    class Speaks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = torch.nn.Linear(4, 4)
            self.sound = torch.nn.Linear(4, 4)

    with pytest.raises(BatchError, match=r"no forward, it only generates; .*text, sound"):
        make_batch(Speaks())


def test_a_width_that_is_cut_in_six_stays_a_multiple_of_three() -> None:
    """LiLT's six parts of a box must add up to the width, as 64 never would."""
    made = make_batch(_small("LiltConfig", "LiltForTokenClassification"))
    assert made.loss == "labels"
