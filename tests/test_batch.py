"""Batches are made from signature and config, and corrected by what the model says."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lora_doctor.tiny_model.batch.loss import batch_loss, surrogate_loss  # noqa: E402
from lora_doctor.tiny_model.batch.make_batch import make_batch  # noqa: E402
from lora_doctor.tiny_model.batch.result import BatchError  # noqa: E402
from lora_doctor.tiny_model.shrink.shrink import shrink  # noqa: E402


def tiny(config: str, model: str) -> Any:
    if not hasattr(transformers, model):
        pytest.skip(f"this transformers has no {model}")
    cls = getattr(transformers, model)
    return shrink(getattr(transformers, config)(), lambda c: cls(c))


CASES = [
    ("LlamaConfig", "LlamaForCausalLM", ["text"], "labels"),
    ("LlamaConfig", "LlamaModel", ["text"], "surrogate"),
    ("BertConfig", "BertForSequenceClassification", ["text"], "labels"),
    ("BertConfig", "BertForQuestionAnswering", ["text"], "start_positions/end_positions"),
    ("T5Config", "T5ForConditionalGeneration", ["text"], "labels"),
    ("WhisperConfig", "WhisperForConditionalGeneration", ["audio"], "labels"),
    ("ViTConfig", "ViTForImageClassification", ["image"], "labels"),
    ("CLIPConfig", "CLIPModel", ["text", "image"], "labels"),
    ("LlavaConfig", "LlavaForConditionalGeneration", ["text", "image"], "labels"),
    ("LlavaNextConfig", "LlavaNextForConditionalGeneration", ["text", "image"], "labels"),
    ("PaliGemmaConfig", "PaliGemmaForConditionalGeneration", ["text", "image"], "labels"),
    ("Idefics3Config", "Idefics3ForConditionalGeneration", ["text", "image"], "labels"),
    ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration", ["text", "image"], "labels"),
    ("InstructBlipConfig", "InstructBlipForConditionalGeneration", ["text", "image"], "labels"),
    ("Pix2StructConfig", "Pix2StructForConditionalGeneration", ["image"], "labels"),
]


@pytest.mark.parametrize(("config", "model", "modality", "loss"), CASES)
def test_a_batch_trains(config: str, model: str, modality: list[str], loss: str) -> None:
    """The whole way: inputs for every tower, a finite loss of the right kind, gradients."""
    result = tiny(config, model)
    batch = result.batch
    assert set(modality) <= set(batch.modality), batch.notes
    assert batch.loss == loss
    value = batch_loss(result.model, batch)
    value.backward()
    assert value.dim() == 0 and value.isfinite()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in result.model.parameters())


def test_labels_ignore_special_tokens_and_inputs_avoid_them() -> None:
    result = tiny("LlavaConfig", "LlavaForConditionalGeneration")
    ids, labels = result.batch.inputs["input_ids"], result.batch.inputs["labels"]
    image = result.config.image_token_index
    assert (ids == image).any() and (labels[ids == image] == -100).all()
    assert (labels != -100).any()


@pytest.mark.parametrize(
    ("config", "model"),
    [("BlenderbotSmallConfig", "BlenderbotSmallForCausalLM"), ("BertConfig", "BertForMaskedLM")],
)
def test_labels_are_not_what_the_model_is_given(config: str, model: str) -> None:
    """A decoder alone does not shift its labels. Asked for its own input, tied embeddings give it:
    the loss began at 5.00, could fall to 4.99, and bfloat16 did not tell the two apart."""
    inputs = tiny(config, model).batch.inputs
    ids, labels = inputs["input_ids"], inputs["labels"]
    counted = labels != -100
    assert counted.any() and (ids[counted] != labels[counted]).float().mean() > 0.8
    assert sorted(ids[counted].tolist()) == sorted(labels[counted].tolist())


def test_the_same_seed_gives_the_same_batch_and_the_model_is_not_touched() -> None:
    result = tiny("GPT2Config", "GPT2LMHeadModel")
    before = {k: v.clone() for k, v in result.model.state_dict().items()}
    one, two = make_batch(result.model, seed=3), make_batch(result.model, seed=3)
    assert torch.equal(one.inputs["input_ids"], two.inputs["input_ids"])
    assert not torch.equal(one.inputs["input_ids"], make_batch(result.model).inputs["input_ids"])
    assert all(torch.equal(v, before[k]) for k, v in result.model.state_dict().items())


def test_text_only_is_had_on_request() -> None:
    result = tiny("LlavaConfig", "LlavaForConditionalGeneration")
    batch = make_batch(result.model, modality="text")
    assert batch.modality == ["text"] and "pixel_values" not in batch.inputs


def test_without_running_the_likeliest_batch_is_made() -> None:
    result = tiny("LlamaConfig", "LlamaForCausalLM")
    batch = make_batch(result.model, run=False, batch_size=3, seq_len=5)
    assert batch.inputs["input_ids"].shape == (3, 5)
    assert batch.loss == "labels"


class Stubborn(torch.nn.Module):
    """A model of somebody's own: no config, and it insists on an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(64, 8)

    def forward(self, input_ids: Any, token_type_ids: Any = None) -> Any:
        if token_type_ids is None:
            raise ValueError("You have to specify token_type_ids")
        return (self.table(input_ids),)


def test_a_missing_argument_is_added_when_the_model_asks_for_it() -> None:
    batch = make_batch(Stubborn())
    assert "token_type_ids" in batch.inputs and batch.loss == "surrogate"
    assert any("added token_type_ids" in note.text for note in batch.notes)


class Robot(Stubborn):
    """It wants what only robots have, and says so in its own ways."""

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.PretrainedConfig(max_state_dim=6, vocab_size=64)

    def forward(
        self,
        state: Any,
        input_ids: Any,
        pose: Any = None,
        wheel_mask: Any = None,
        moves: Any = None,
    ) -> Any:
        """
        Args:
            pose (`torch.LongTensor` of shape `(batch_size, 3)`): Where it stands.
        """
        turned = pose.float().sum(-1)
        logits = self.table(input_ids).mean(1) * state.sum(-1, keepdim=True) + turned[:, None]
        loss = None
        if moves is not None:
            loss = (logits - moves).pow(2).mean()
        return {"loss": loss, "logits": logits}


def test_unknown_arguments_come_from_documentation_config_and_code() -> None:
    """A required one, one that the code goes on to use, and what the loss is made from."""
    batch = make_batch(Robot())
    assert batch.inputs["state"].shape == (2, 6), "as wide as the config says"
    assert batch.inputs["pose"].shape == (2, 3), "the shape in the docstring"
    assert not batch.inputs["pose"].is_floating_point()
    assert "wheel_mask" not in batch.inputs, "nobody asked for it"
    assert batch.loss == "moves" and batch.inputs["moves"].shape == (2, 8)


class Listener(torch.nn.Module):
    """Sound is added to the tokens, one feature to each."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(64, 8)
        self.sound = torch.nn.Conv1d(80, 8, 4, stride=4)

    def forward(self, input_ids: Any, input_features: Any) -> Any:
        return (self.table(input_ids) + self.sound(input_features).transpose(1, 2),)


def test_as_many_tokens_as_features_of_a_sound() -> None:
    batch = make_batch(Listener())
    assert batch.inputs["input_ids"].shape[1] == batch.inputs["input_features"].shape[-1] // 4


class Cameras(torch.nn.Module):
    """Several pictures a sample, and a mask that says which are there: not of their pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.look = torch.nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, pixel_values: Any, pixel_attention_mask: Any) -> Any:
        rows, pictures = pixel_attention_mask.shape
        seen = self.look(pixel_values.flatten(0, 1)).view(rows, pictures, -1)
        return (seen * pixel_attention_mask[..., None],)


def test_a_mask_of_pictures_has_no_pixels() -> None:
    assert make_batch(Cameras()).inputs["pixel_attention_mask"].dim() == 2


def test_an_unknown_forward_is_refused_in_one_line() -> None:
    class Odd(torch.nn.Module):
        def forward(self, wavelets: Any) -> Any:
            return wavelets

    with pytest.raises(BatchError) as caught:
        make_batch(Odd())
    assert "\n" not in caught.value.reason and "Odd.forward" in caught.value.reason


def test_a_wrapper_is_asked_for_what_it_wraps() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def get_base_model(self) -> Any:
            return self.inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    assert make_batch(Wrapper(Stubborn())).modality == ["text"]


def test_the_surrogate_can_fall_on_normalised_outputs() -> None:
    """A square alone could not: a LayerNorm's output has the same whatever is learnt."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    inputs, optimizer = torch.randn(4, 8), torch.optim.AdamW(layer.parameters(), lr=0.02)
    before = surrogate_loss(layer(inputs)).item()
    for _ in range(5):
        optimizer.zero_grad()
        surrogate_loss(layer(inputs)).backward()
        optimizer.step()
    assert surrogate_loss(layer(inputs)).item() < before - 1e-3


def test_the_surrogate_takes_the_first_output_with_a_gradient() -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = surrogate_loss({"a": torch.zeros(2), "b": (2 * weight,)})
    loss.backward()
    assert weight.grad is not None and weight.grad.abs().min() > 0
    with pytest.raises(BatchError):
        surrogate_loss({"ids": torch.zeros(2, dtype=torch.long)})


def test_pictures_that_belong_together_come_as_many_as_asked_for() -> None:
    """Points are matched between two pictures; the model says so, its config does not."""

    class Matcher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, pixel_values: Any) -> Any:
            if pixel_values.dim() != 5 or pixel_values.size(1) != 2:
                said = "Input must be a 5D tensor of shape (batch_size, 2, num_channels, height, "
                raise ValueError(f"{said}width)")
            return self.conv(pixel_values.flatten(0, 1))

    assert make_batch(Matcher()).inputs["pixel_values"].shape[1:3] == (2, 3)


@pytest.mark.parametrize("length", [24, 32])
def test_a_series_is_as_long_as_the_model_says(length: int) -> None:
    """Forward names neither text nor image nor sound: what it cannot do without is made."""

    class Series(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(length, 1)

        def forward(self, past_values: torch.Tensor) -> Any:
            """Args:
            past_values (`torch.FloatTensor` of shape `(batch_size, sequence_length)`): seen so far.
            """
            if length == 32:  # cut into patches
                return self.head(past_values.view(2, -1, length))
            if past_values.shape[1] != length:
                raise ValueError(
                    f"Input sequence length ({past_values.shape[1]}) doesn't match model "
                    f"configuration ({length})."
                )
            return self.head(past_values)

    made = make_batch(Series()).inputs["past_values"]
    assert made.shape[0] == 2 and made.shape[1] % length == 0
