"""A batch with pictures or sound is one that the towers for them really run on."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lora_doctor.model.contract_batches import make_batches  # noqa: E402
from lora_doctor.model.zero_weights import wake_zero_weights  # noqa: E402
from lora_doctor.results.note import Note  # noqa: E402
from lora_doctor.tiny_model.batch.loss import batch_loss  # noqa: E402
from lora_doctor.tiny_model.batch.make_batch import make_batch  # noqa: E402
from lora_doctor.tiny_model.shrink.shrink import shrink  # noqa: E402

#: Config, class, and the parts that learn only when the batch reaches them.
TOWERS = [
    ("Kosmos2_5Config", "Kosmos2_5ForConditionalGeneration", ["vision_model", "image_to_text"]),
    (
        "InstructBlipVideoConfig",
        "InstructBlipVideoForConditionalGeneration",
        ["vision_model", "qformer", "language_projection"],
    ),
    ("VideoLlavaConfig", "VideoLlavaForConditionalGeneration", ["image_tower", "video_tower"]),
    ("EvollaConfig", "EvollaForProteinText2Text", ["protein_encoder"]),
    # patches: rows of numbers, small pictures, one strip
    ("FuyuConfig", "FuyuForCausalLM", ["vision_embed_tokens"]),
    ("PaddleOCRVLConfig", "PaddleOCRVLForConditionalGeneration", ["visual", "projector"]),
    ("MiniCPMV4_6Config", "MiniCPMV4_6ForConditionalGeneration", ["vision_tower", "merger"]),
    # configs whose parts do not fit each other as they come
    ("AriaConfig", "AriaForConditionalGeneration", ["vision_tower", "multi_modal_projector"]),
    ("Llama4Config", "Llama4ForConditionalGeneration", ["vision_model", "multi_modal_projector"]),
    ("JanusConfig", "JanusForConditionalGeneration", ["vision_model", "aligner"]),
    ("GraniteSpeechConfig", "GraniteSpeechForConditionalGeneration", ["encoder", "projector"]),
    ("VoxtralConfig", "VoxtralForConditionalGeneration", ["audio_tower", "multi_modal"]),
]


@pytest.mark.parametrize(("config", "model", "parts"), TOWERS)
def test_every_tower_gets_a_gradient(config: str, model: str, parts: list[str]) -> None:
    """Without it an adapter there would be called one that learns nothing, for want of inputs."""
    if not hasattr(transformers, model):
        pytest.skip(f"this transformers has no {model}")
    cls = getattr(transformers, model)
    if "image_patches_indices" in inspect.signature(cls.forward).parameters:
        pytest.skip("this Fuyu takes lists of patches and tables of their places")
    result = shrink(getattr(transformers, config)(), lambda c: cls(c))
    broken = error_of_plain_text(result.model)
    if broken:  # Llama 4 in transformers 5.24: its forward raises for whatever it is given
        assert result.batch is None and broken in result.steps[-1], result.steps
        return
    assert not result.batch.left_out, result.batch.notes
    wake_zero_weights(result.model)  # gates that begin closed
    batch_loss(result.model, result.batch).backward()
    learning = [
        name
        for name, parameter in result.model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    ]
    assert all(any(part in name for name in learning) for part in parts), result.batch.notes


def error_of_plain_text(model: Any) -> str:
    """What the class raises on the outputs of its own parts, for a text and nothing else."""
    try:
        model(input_ids=torch.tensor([[1, 2, 3]]))
    except AttributeError as error:
        return str(error) if isinstance(error.obj, transformers.utils.ModelOutput) else ""
    except Exception:  # noqa: BLE001 - it wants a picture or sound beside the text
        return ""
    return ""


class AsksItsPart(torch.nn.Module):
    """A class that was not adapted when the outputs of another were renamed."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.part = transformers.LlamaForCausalLM(config)

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        return self.part(input_ids=input_ids, labels=labels).picture_outputs


def test_what_no_size_changes_is_not_searched_for() -> None:
    """The reason is what the code raises, after one forward, not what other sizes raise."""
    result = shrink(transformers.LlamaConfig(), AsksItsPart)
    assert result.batch is None and result.attempts == 1
    assert "no attribute 'picture_outputs'" in result.steps[-1]


class Recorder(torch.nn.Module):
    """A model of somebody's own that has its own names for what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.look = torch.nn.Conv2d(3, 8, 16, 16)

    def forward(self, image_pixel_values: Any = None) -> Any:
        if image_pixel_values is None:
            raise ValueError("You have to specify image_pixel_values")
        return self.look(image_pixel_values)


def test_an_input_goes_by_the_name_that_forward_has_for_it() -> None:
    batch = make_batch(Recorder())
    assert list(batch.inputs) == ["image_pixel_values"] and batch.modality == ["image"]


class Blind(torch.nn.Module):
    """It says that it takes pictures and refuses every one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(64, 8)

    def forward(self, input_ids: Any = None, pixel_values: Any = None) -> Any:
        if pixel_values is not None:
            raise RuntimeError("the eyes are shut")
        return (self.table(input_ids),)


def test_a_tower_that_nothing_was_run_on_is_said() -> None:
    """Otherwise a set-up whose vision tower never ran would be called healthy without a word."""
    notes: list[Note] = []
    model = Blind()
    make_batches(model, None, make_batch(model), notes)
    assert [note.kind for note in notes] == ["not-fed"]
    assert "image" in notes[0].text and "the eyes are shut" in notes[0].reason
