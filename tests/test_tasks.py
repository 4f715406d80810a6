"""`check arch:NAME --class X` for tasks other than generation: a recipe that trains, unasked."""

from __future__ import annotations

import re
from typing import Any

import pytest
from packaging.version import Version

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import lora_doctor  # noqa: E402
from lora_doctor.evidence.loaded_module import verify_module  # noqa: E402
from lora_doctor.sandbox.worker import Worker  # noqa: E402


def checked(worker: Worker, name: str, task: str, depth: str = "tiny") -> Any:
    auto_class = f"AutoModelFor{task}"
    mapping = getattr(getattr(transformers, auto_class, None), "_model_mapping", None)
    if name not in getattr(mapping, "_model_mapping", {}):
        pytest.skip(f"this transformers has no {auto_class} of {name}")
    recipe = {"model_class": auto_class}
    return lora_doctor.check(f"arch:{name}", recipe, depth=depth, worker=worker)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "MultipleChoice"),  # each sample is several texts
        ("audio-spectrogram-transformer", "AudioClassification"),  # sound of one length
        ("wav2vec2-bert", "CTC"),  # the default config leaves the vocabulary empty
        ("glpn", "DepthEstimation"),  # batch norms that go by a number
        ("swin", "ImageClassification"),  # windows that a small picture does not fill
        ("dpt", "DepthEstimation"),  # as many layers give out features as the neck has widths
        ("timesfm", "TimeSeriesPrediction"),  # neither text nor image nor sound
        ("reformer", "QuestionAnswering"),  # no gradient comes back through frozen embeddings
        ("longformer", "SequenceClassification"),  # the last local attention is read by nobody
        ("mbart", "SequenceClassification"),  # reads at the last end of sequence; 4.37 only indexes
        ("sew", "CTC"),  # a weight that a hook computes before each forward
        ("wavlm", "CTC"),  # its attention reads weights and biases, and calls no projection
    ],
)
def test_a_recipe_that_trains(worker: Worker, name: str, task: str) -> None:
    """Whoever trains a classifier asks the same question as whoever trains a chat model."""
    diagnosis = checked(worker, name, task)
    assert diagnosis.before is not None, diagnosis.undetermined
    assert diagnosis.before.outcome == "passed", diagnosis.before


def test_a_list_that_a_class_asks_for_with_an_example_is_filled_in(worker: Worker) -> None:
    """BEiT's segmentation needs `out_indices`, which no default config has."""
    if Version(transformers.__version__) < Version("4.50"):
        pytest.skip("not filled in where the config keeps it under another name (4.37, 4.44)")
    diagnosis = checked(worker, "beit", "SemanticSegmentation")
    assert diagnosis.before is not None and diagnosis.before.batches, diagnosis.undetermined


def test_convolutions_are_adapted_where_no_layer_is_linear(worker: Worker) -> None:
    """MobileNet has nothing linear but its head; PEFT refuses its depthwise convolutions."""
    structure = checked(worker, "mobilenet_v2", "ImageClassification", "meta").structure
    assert structure is not None and structure.injection.ok, structure and structure.injection
    adapted = [group for group in structure.groups if group.adapted]
    assert len(adapted) > 10
    assert all(group.kind == "conv" and group.shape[1] > 1 for group in adapted)
    assert not any(re.search("conv_3x3", group.pattern) for group in adapted)


def test_convolutions_in_groups_are_passed_by_among_others_of_the_same_name(
    worker: Worker,
) -> None:
    """Of the three in each block of a RegNet, told apart by a number only, the second is in
    groups, which PEFT refuses where the rank is no multiple of them."""
    structure = checked(worker, "regnet", "ImageClassification", "meta").structure
    assert structure is not None and structure.injection.ok, structure and structure.injection
    convolutions = [group for group in structure.groups if group.leaf == "convolution"]
    blocks = [group for group in convolutions if group.pattern.endswith("layer.*.convolution")]
    ends = {path.split(".")[-2]: group.adapted > 0 for group in blocks for path in group.examples}
    assert len(ends) == 3 and [end for end, adapted in ends.items() if not adapted] == ["1"]


@pytest.mark.parametrize(
    ("name", "task", "head"),
    [
        ("wav2vec2", "AudioClassification", "classifier"),
        ("segformer", "SemanticSegmentation", "decode_head"),
        ("bart", "SequenceClassification", "classification_head"),  # not a name that PEFT knows
        ("dpt", "SemanticSegmentation", "head.head auxiliary_head.head"),  # `head` fits both, twice
    ],
)
def test_the_new_head_of_a_task_is_trained_and_saved(
    worker: Worker, name: str, task: str, head: str
) -> None:
    """Frozen, it stays random, and it is another random head after every loading."""
    structure = checked(worker, name, task, "meta").structure
    assert structure is not None and structure.injection.ok
    assert structure.recipe["values"]["modules_to_save"] == head.split()


def test_heads_that_peft_trains_by_itself_are_not_named_again(worker: Worker) -> None:
    """Its SEQ_CLS wrapper knows Llama's `score`."""
    structure = checked(worker, "llama", "SequenceClassification", "meta").structure
    assert structure is not None
    assert structure.recipe["values"]["task_type"] == "SEQ_CLS"
    assert structure.recipe["values"].get("modules_to_save") is None


def test_a_class_that_does_not_list_the_model_is_told_from_one_that_is_not_there(
    worker: Worker,
) -> None:
    """The first is a question of which task, the second a slip of the pen."""
    with pytest.raises(lora_doctor.InputError) as other_task:
        lora_doctor.check("arch:llama", {"model_class": "AutoModelForImageClassification"},
                          depth="meta", worker=worker)  # fmt: skip
    assert "no model_type 'llama' there, but in AutoModel," in str(other_task.value)
    with pytest.raises(lora_doctor.InputError) as slip:
        lora_doctor.check("arch:llama", {"model_class": "AutoModelForCausalLm"},
                          depth="meta", worker=worker)  # fmt: skip
    assert "not a class of transformers" in str(slip.value)
    assert "AutoModelForCausalLM" in str(slip.value)


def test_the_choice_among_several_tasks_is_told(worker: Worker) -> None:
    """BERT is in ten mappings; somebody who wants another one must know that there is a choice."""
    unasked = lora_doctor.check("arch:bert", depth="meta", worker=worker)
    told = " ".join(note.text for note in unasked.notes)
    assert "taken as AutoModelForSequenceClassification" in told
    assert "--class" in told and "AutoModelForMultipleChoice" in told
    asked = lora_doctor.check("arch:bert", {"model_class": "AutoModelForMaskedLM"},
                              depth="meta", worker=worker)  # fmt: skip
    assert not any("taken as" in note.text for note in asked.notes)


def test_statistics_of_a_model_just_made_fit_its_activations() -> None:
    """With mean 0 and variance 1, whatever the weights, MobileViT's loss was flat in eval mode."""
    from lora_doctor.tiny_model.batch.result import Batch
    from lora_doctor.tiny_model.statistics import fit_statistics

    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Any) -> Any:
            return self.net(x)

    model = Net().eval()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    values = torch.randn(64, 4) * 100 + 50
    fit_statistics(model, Batch({"x": values}, ["other"], "surrogate"))
    norm = net[1]
    assert torch.allclose(norm.running_mean, net[0](values).mean(0), rtol=1e-3)
    assert norm.momentum == 0.1 and not any(module.training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())


def test_layers_of_a_class_of_their_own_are_adapted_by_their_weights(worker: Worker) -> None:
    """I-BERT multiplies by the weights of its QuantLinear, which PEFT does not know as a layer; and
    it keeps ranges of its activations, which any forward in training mode moves."""
    peft = pytest.importorskip("peft")
    if Version(peft.__version__) < Version("0.17"):
        pytest.skip("this PEFT adapts no parameters")
    diagnosis = checked(worker, "ibert", "MultipleChoice")
    recipe = diagnosis.recipe
    assert any(name.endswith("query.weight") for name in recipe.get("target_parameters"))
    assert diagnosis.before is not None and diagnosis.before.outcome == "passed", diagnosis.before
    assert any("statistics" in note.text for note in diagnosis.before.notes)


class _Keeps(torch.nn.Module):
    """A model with a buffer: the mean of what it saw, or one that is written in its backward."""

    def __init__(self, in_backward: bool) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.last = torch.nn.Linear(4, 4)
        self.in_backward = in_backward
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Any, labels: Any = None) -> Any:
        hidden = self.first(x)
        if self.training and self.in_backward:
            hidden.register_hook(self._count)
        elif self.training:
            self.seen = 0.9 * self.seen + 0.1 * hidden.detach().mean(0)
        logits = self.last(hidden)
        loss = ((logits - labels) ** 2).mean()
        return {"loss": loss, "logits": logits}

    def _count(self, gradient: Any) -> None:
        self.seen.add_(1)


@pytest.mark.parametrize(("in_backward", "status"), [(False, "passed"), (True, "failed")])
def test_what_a_forward_keeps_is_no_frozen_weight(in_backward: bool, status: str) -> None:
    torch.manual_seed(0)
    batch = {"x": torch.randn(6, 4), "labels": torch.randn(6, 4)}
    recipe = {"target_modules": ["first"], "r": 2}
    model = _Keeps(in_backward)
    result = verify_module(model, recipe, [batch])
    check = result.check("frozen-stay")
    assert check is not None and check.status == status, check
