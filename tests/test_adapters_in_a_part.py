"""A PeftModel that is a part of the user's own module: what holds for the whole holds for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import lora_doctor
from lora_doctor.model.peft_models import peft_models
from tests import models

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*second time:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]

IDS = torch.arange(4, 20).reshape(2, 8)
BATCH = {"input_ids": IDS, "labels": IDS}


class Wrapper(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """A module of the user's own around the language model."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base_model = base

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        return self.base_model(input_ids=input_ids, labels=labels)


class Deeper(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """The same, two modules further down."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.inner = torch.nn.ModuleDict({"llm": Wrapper(base)})

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        return self.inner["llm"](input_ids=input_ids, labels=labels)


class Detector(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """A detection head, and a learned query, beside the language model."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base_model = base
        self.queries = torch.nn.Parameter(torch.randn(3, 32) * 0.1)
        self.attn = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        self.detection_head = torch.nn.Linear(32, 4)

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        out = self.base_model(input_ids=input_ids, labels=labels, output_hidden_states=True)
        hidden = out.hidden_states[-1]
        found, _ = self.attn(self.queries.expand(len(hidden), -1, -1), hidden, hidden)
        boxes = self.detection_head(found)
        return {"loss": out.loss + (boxes - 1).square().mean(), "logits": boxes}


class TwoTowers(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """Two language models with an adapter each."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.query, self.answer = first, second

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        one = self.query(input_ids=input_ids, labels=labels)
        two = self.answer(input_ids=input_ids, labels=labels)
        return {"loss": one.loss + two.loss, "logits": one.logits + two.logits}


class Frozen(Wrapper):
    """Somebody runs the encoder without gradients, and trains a head on it."""

    def __init__(self, base: Any) -> None:
        super().__init__(base)
        self.head = torch.nn.Linear(64, 1)

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        with torch.no_grad():
            logits = self.base_model(input_ids=input_ids).logits
        values = self.head(logits)
        return {"loss": (values - 1).square().mean(), "logits": values}


def lora() -> Any:
    return peft.get_peft_model(models._tiny_llama(), models._lora("q_proj", "v_proj"))


def prompt() -> Any:
    return peft.get_peft_model(models._tiny_llama(), models._prompt())


def findings(model: Any) -> tuple[str, list[str], Any]:
    """The verdict, the rules that found something, and the diagnosis."""
    found = lora_doctor.check(model, batches=[BATCH])
    return found.verdict, sorted(one.rule for one in found.findings), found


STACKED = {
    "lora-then-prompt": models.lora_then_prompt,
    "lora-in-lora": models.lora_in_lora,
    "lora-twice": models.lora_twice_on_one_base,
}


@pytest.mark.parametrize("outer", [Wrapper, Deeper], ids=["wrapper", "deeper"])
@pytest.mark.parametrize("make", STACKED.values(), ids=STACKED)
def test_stacked_in_a_part(outer: Any, make: Callable[[], Any]) -> None:
    """As it is told of the PeftModel alone, at its place."""
    verdict, rules, found = findings(outer(make()))
    assert verdict == "findings" and rules == ["LD505"], rules
    (stacked,) = found.findings
    assert stacked.location.path.startswith(next(iter(peft_models(outer(make())))))
    alone = lora_doctor.check(make(), batches=[BATCH], select=("LD505",)).findings
    assert [stacked.severity] == [one.severity for one in alone]


@pytest.mark.parametrize("outer", [Wrapper, Deeper], ids=["wrapper", "deeper"])
@pytest.mark.parametrize("make", [lora, prompt])
def test_one_adapter_in_a_part_is_healthy(outer: Any, make: Callable[[], Any]) -> None:
    verdict, rules, found = findings(outer(make()))
    assert verdict == "healthy" and not rules, rules
    assert found.before.check("save-reload").status == "passed"


def test_two_parts_are_saved_and_loaded_each() -> None:
    verdict, rules, found = findings(TwoTowers(lora(), lora()))
    assert verdict == "healthy" and not rules, rules
    assert found.before.saving.wrapped == "query, answer"
    verdict, rules, _ = findings(TwoTowers(lora(), models.lora_in_lora()))
    assert verdict == "findings" and rules == ["LD505"]


def trained_and_reloaded(model: Any, folder: Any) -> float:
    """How far the outputs lie apart after one step and saving as the user does, in plain PEFT."""
    fresh = Detector(models._tiny_llama())
    fresh.load_state_dict(
        {
            name: value
            for name, value in model.state_dict().items()
            if not name.startswith("base_model")
        },
        strict=False,
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**BATCH)["loss"].backward()
    optimizer.step()
    model.base_model.save_pretrained(str(folder))
    fresh.base_model = peft.PeftModel.from_pretrained(fresh.base_model, str(folder))
    with torch.no_grad():
        return float((model(**BATCH)["logits"] - fresh(**BATCH)["logits"]).abs().max())


def test_what_trains_beside_the_part_is_lost(tmp_path: Any) -> None:
    """Whole modules and single parameters; a name that modules_to_save would take elsewhere too."""
    assert trained_and_reloaded(Detector(lora()), tmp_path) > 1e-3
    verdict, rules, found = findings(Detector(lora()))
    assert verdict == "findings" and rules == ["LD602"], rules
    (lost,) = found.findings
    assert {"queries", "attn", "detection_head"} == set(found.before.saving.lost)
    assert "self_attn" in lost.fixes[0].title


def test_both_are_told_of_stacked_adapters_beside_a_head() -> None:
    for make in (models.lora_then_prompt, models.lora_in_lora):
        _, rules, _ = findings(Detector(make()))
        assert rules == ["LD505", "LD602"], rules


def test_no_adapter_learns_under_no_grad() -> None:
    """The head does; that is told beside it, and freezing the head is not advised."""
    _, rules, found = findings(Frozen(lora()))
    assert rules == ["LD206", "LD602"], rules
    dead = next(one for one in found.findings if one.rule == "LD206")
    assert dead.severity == "error" and "no_grad" in dead.fixes[0].title
