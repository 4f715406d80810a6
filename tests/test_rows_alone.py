"""Two rows of a large batch stand for it only where they give alone what they give in it: a
training contract that fails, or passes, because of the cut would tell of no run of the user's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lora_doctor.dry_run.acts import batch_rows, contract  # noqa: E402
from lora_doctor.dry_run.acts.batch_rows import cut_rows  # noqa: E402
from lora_doctor.dry_run.acts.rows_alone import stand_alone  # noqa: E402
from lora_doctor.recipe.files.read_write import as_recipe  # noqa: E402

_WORDS = 40


def _loss(logits: Any, labels: Any, how: str = "mean") -> Any:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=how)


class _Words(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Logits of each token from the token alone, with torch's own dropout; the others differ from
    it in one method."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(_WORDS, 16)
        self.head = torch.nn.Linear(16, _WORDS)
        self.extra = torch.nn.Identity()

    def hidden(self, input_ids: Any, given: dict[str, Any]) -> Any:
        return torch.nn.functional.dropout(self.words(input_ids), 0.5, self.training)

    def loss(self, hidden: Any, logits: Any, given: dict[str, Any]) -> Any:
        return _loss(logits, given["labels"])

    def forward(self, input_ids: Any, **given: Any) -> dict[str, Any]:
        hidden = self.hidden(input_ids, given)
        logits = self.head(hidden)
        return {"loss": self.loss(hidden, logits, given), "logits": logits}


class _Sum(_Words):
    def loss(self, hidden: Any, logits: Any, given: dict[str, Any]) -> Any:
        return _loss(logits, given["labels"], "sum")


class _Divided(_Words):
    """As transformers divides it where a Trainer accumulates."""

    def loss(self, hidden: Any, logits: Any, given: dict[str, Any]) -> Any:
        return _loss(logits, given["labels"], "sum") / given["num_items_in_batch"]


class _Moved(_Words):
    """As a causal language model does it."""

    def loss(self, hidden: Any, logits: Any, given: dict[str, Any]) -> Any:
        return _loss(logits[:, :-1], given["labels"][:, 1:])


class _NoLoss(_Words):
    def forward(self, input_ids: Any, **given: Any) -> Any:
        return self.head(self.hidden(input_ids, given))


class _BatchNorm(_Words):
    def __init__(self) -> None:
        super().__init__()
        self.extra = torch.nn.BatchNorm1d(16)

    def hidden(self, input_ids: Any, given: dict[str, Any]) -> Any:
        return self.extra(self.words(input_ids).transpose(1, 2)).transpose(1, 2)


class _LessItsMean(_Words):
    """What batch norm does, by somebody's own hand, and in training only."""

    def hidden(self, input_ids: Any, given: dict[str, Any]) -> Any:
        hidden = self.words(input_ids)
        return hidden - hidden.mean(0) if self.training else hidden


class _Contrastive(_Words):
    """Each row's outputs are its own, the loss sets it against the others."""

    def loss(self, hidden: Any, logits: Any, given: dict[str, Any]) -> Any:
        rows = self.head(hidden).mean(1)
        return torch.nn.functional.cross_entropy(rows @ rows.T, torch.arange(len(rows)))


class _Neighbours(_Words):
    """Rows that follow each other are pairs."""

    def loss(self, hidden: Any, logits: Any, given: dict[str, Any]) -> Any:
        return (logits[:-1] - logits[1:]).pow(2).mean()


class _Balanced(_Words):
    """A mixture of experts tells how evenly the tokens of a batch were spread."""

    def forward(self, input_ids: Any, **given: Any) -> dict[str, Any]:
        found = super().forward(input_ids, **given)
        return {**found, "aux_loss": found["logits"].softmax(-1).mean((0, 1)).pow(2).sum()}


class _Experts(_Words):
    """An expert that the tokens of some rows reach."""

    def hidden(self, input_ids: Any, given: dict[str, Any]) -> Any:
        hidden = self.words(input_ids)
        self.extra(hidden[input_ids == _WORDS - 1])
        return hidden


class _TimeFirst(_Words):
    def forward(self, input_ids: Any, **given: Any) -> dict[str, Any]:
        return {"logits": self.head(self.words(input_ids)).transpose(0, 1)}


class _Images(_Words):
    """Images in the order of their tokens, as in LLaVA."""

    def hidden(self, input_ids: Any, given: dict[str, Any]) -> Any:
        hidden, place = self.words(input_ids), input_ids == 0
        if int(place.sum()) != len(given["pixel_values"]):
            raise ValueError("image tokens and images do not match")
        return hidden.masked_scatter(place[..., None], given["pixel_values"])


class _ThreeAxes(_Words):
    """Positions of Qwen2-VL: axes, rows, tokens."""

    def hidden(self, input_ids: Any, given: dict[str, Any]) -> Any:
        _, rows, _ = given["position_ids"].shape
        if rows != len(input_ids):
            raise ValueError("positions of other rows")
        return self.words(input_ids) + given["position_ids"].sum(0)[..., None]


def _batch(rows: int = 5, **more: Any) -> dict[str, Any]:
    """Rows of which each is shorter than the one before it. Token 0 is nowhere."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, _WORDS - 1, (rows, 9), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, 9 - row :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **more}


def _with_images(*counts: int) -> dict[str, Any]:
    batch = _batch(len(counts))
    for row, count in enumerate(counts):
        batch["input_ids"][row, :count] = 0
    generator = torch.Generator().manual_seed(2)
    return {**batch, "pixel_values": torch.randn(sum(counts), 16, generator=generator)}


def _with_expert(*rows: int) -> dict[str, Any]:
    batch = _batch()
    batch["input_ids"][list(rows), 0] = _WORDS - 1
    return batch


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_rows, "_LARGE_OUTPUT", 0)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "batch", "alone"),
    [
        (_Words, _batch, True),
        (_Sum, _batch, True),
        (_Moved, _batch, True),
        (_NoLoss, _batch, True),
        (_Divided, lambda: _batch(num_items_in_batch=torch.tensor(35)), True),
        (_Divided, lambda: _batch(num_items_in_batch=142), True),
        (_Words, lambda: _batch(num_items_in_batch=torch.tensor(35)), True),
        (_Images, lambda: _with_images(1, 1, 1, 1), True),
        (_Experts, lambda: _with_expert(0, 2), True),
        (_Experts, lambda: _with_expert(2), False),
        (_Images, lambda: _with_images(1, 2, 1, 0), False),
        (_Images, lambda: _with_images(2, 0, 1), False),
        (_ThreeAxes, lambda: _batch(3, position_ids=torch.arange(81).reshape(3, 3, 9)), False),
        (_ThreeAxes, lambda: _batch(4, position_ids=torch.arange(108).reshape(3, 4, 9)), False),
        (_Words, lambda: _batch(2), False),
        (_Words, lambda: _batch(boxes=[{}] * 5), False),
        (_Words, lambda: _batch(more={"boxes": torch.zeros(5, 2)}), False),
        (_Words, lambda: _batch(cu_seqlens=torch.arange(3)), False),
        (_BatchNorm, _batch, False),
        (_LessItsMean, _batch, False),
        (_Contrastive, _batch, False),
        (_Neighbours, _batch, False),
        (_Balanced, _batch, False),
        (_TimeFirst, _batch, False),
    ],
)
def test_rows_stand_for_a_batch_where_they_give_the_same_alone(
    kind: type[Any], batch: Callable[[], dict[str, Any]], alone: bool, dtype: str
) -> None:
    model, given = kind().to(getattr(torch, dtype)).train(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cut = cut_rows(given, _WORDS)
    assert (cut is not None and stand_alone(model, given, cut)) == alone
    after = model.state_dict()
    assert all(value.dtype == after[name].dtype for name, value in before.items())
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class _Gated(_Words):
    """Some tokens are a gate that lets nothing through to the loss."""

    def forward(self, input_ids: Any, **given: Any) -> dict[str, Any]:
        logits = self.head(self.words(input_ids)) * (input_ids < _WORDS // 2)[..., None]
        return {"loss": _loss(logits, given["labels"]), "logits": logits}


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize(("gated", "whole"), [((0, 4), True), ((1, 2), False), ((), False)])
def test_what_two_rows_fail_is_asked_of_all_rows(gated: tuple[int, ...], whole: bool) -> None:
    """The shortest and the longest row give no gradient, and the others do: the run trains."""
    peft = pytest.importorskip("peft")
    batch = _batch()
    batch["input_ids"] %= _WORDS // 2
    batch["input_ids"][list(gated)] = _WORDS - 1
    config = peft.LoraConfig(target_modules=["head"])
    model = peft.get_peft_model(_Gated(), config).train()
    notes: list[str] = []
    acting: Any = SimpleNamespace(note=lambda kind, text: notes.append(text))
    model.base_model.model.get_output_embeddings = lambda: model.base_model.model.head.base_layer
    result = contract._verify(acting, model, as_recipe(config), batch)
    assert result.outcome == "passed", result
    assert result.batches[0].inputs["input_ids"][0] == (5 if whole else 2)
    said = [] if whole else ["the training contract ran on 2 of 5 rows of the batch"]
    assert notes == said


def test_what_a_plain_wrapper_is_given_by_place_has_the_names_of_the_model_below() -> None:
    """PEFT's wrapper without a task type takes ``*args``: the contract was run with an ``args``."""
    peft = pytest.importorskip("peft")

    class Pictures(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, pixels: Any, mask: Any = None, *, scale: float = 1.0) -> Any:
            return self.layer(pixels) * scale

    model = peft.get_peft_model(Pictures(), peft.LoraConfig(target_modules=["layer"]))
    pixels = torch.ones(2, 4)
    found = contract._forward_arguments(model, (pixels, None), {"scale": 2.0})
    assert found == {"pixels": pixels, "scale": 2.0}


def test_tensors_within_others_are_copied_for_the_contract() -> None:
    boxes = torch.zeros(2)
    found = contract._own({"labels": [{"boxes": boxes}], "more": {"boxes": boxes}, "way": object()})
    boxes += 1
    assert not found["labels"][0]["boxes"].any() and not found["more"]["boxes"].any()
    assert set(found) == {"labels", "more"}
