"""Readings taken off the training contract: norms told by behaviour, connections by numbers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lora_doctor.contract.observers import Observers, observer_classes  # noqa: E402
from lora_doctor.contract.observers.base import Observer, Setting  # noqa: E402
from lora_doctor.contract.observers.connections import freshness  # noqa: E402
from lora_doctor.contract.observers.norms import Norms  # noqa: E402
from lora_doctor.evidence.loaded_module import verify_module  # noqa: E402
from lora_doctor.results.observations import NormReading, Observations  # noqa: E402
from lora_doctor.results.verification import Verification  # noqa: E402

SETTING = Setting(user_weights=True, dtype="float32", wanted_dtype="float32", learning_rate=1e-3)


class HandMade(torch.nn.Module):
    """A root mean square norm whose epsilon goes by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.floor = 3e-5

    def forward(self, x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.floor)


class Pretender(torch.nn.Module):
    """Holds an ``eps`` and does not normalise."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-5

    def forward(self, x: Any) -> Any:
        return torch.log(x.abs() + self.eps)


class Unused(torch.nn.Module):
    """Normalises, with another number than the one it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-5

    def forward(self, x: Any) -> Any:
        return torch.layer_norm(x, x.shape[-1:], eps=1e-6)


def readings(*modules: Any, x: Any) -> tuple[NormReading, ...]:
    model = torch.nn.Sequential(*modules)
    observer = Norms(SETTING)
    handles = list(observer.watch(model))
    model(x)
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in model.modules())
    return observer.readings()


@pytest.mark.parametrize("module", [torch.nn.LayerNorm(8), HandMade()], ids=["LayerNorm", "own"])
def test_norms_are_told_by_what_they_do(module: Any) -> None:
    """Whatever the class and the attribute are called; the variance is what the norm divides by."""
    x = torch.randn(4, 6, 8) * 0.1 + 1.0
    (norm,) = readings(module, x=x)
    variance = x.var(-1, unbiased=False) if norm.class_name == "LayerNorm" else x.pow(2).mean(-1)
    expected = (float(variance.min()), float(variance.median()), float(variance.max()))
    assert norm.variance == pytest.approx(expected, rel=1e-4)
    assert norm.epsilon == (1e-5 if norm.class_name == "LayerNorm" else 3e-5)
    assert norm.zero_row_finite and norm.owner is None and norm.fresh


@pytest.mark.parametrize(
    "module",
    [Pretender(), Unused(), torch.nn.BatchNorm1d(6).eval(), torch.nn.LeakyReLU(1e-3),
     torch.nn.GroupNorm(2, 6)],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_what_does_not_normalise_rows_is_no_norm(module: Any) -> None:
    """An epsilon alone says nothing, nor does statistics over something else than the row."""
    assert readings(module, x=torch.randn(4, 6, 8)) == ()


def test_the_effect_of_another_epsilon_is_measured() -> None:
    """With the closed form for one variance: sqrt((v + a) / (v + b))."""
    x = torch.tensor([[1e-2, -1e-2, 1e-2, -1e-2]])
    norms = readings(torch.nn.LayerNorm(4, eps=1e-4), torch.nn.LayerNorm(4, eps=1e-6), x=x)
    (effect,) = norms[0].effects
    growth = ((1e-4 + 1e-4) / (1e-4 + 1e-6)) ** 0.5
    assert effect.epsilon == 1e-6 and effect.growth == pytest.approx(growth, rel=1e-4)
    assert effect.change == pytest.approx(growth - 1, rel=1e-3)


def test_rows_of_zeros_are_counted_and_leave_the_variance_alone() -> None:
    x = torch.randn(2, 3, 8)
    x[0, 0] = 0
    (norm,) = readings(torch.nn.LayerNorm(8), x=x)
    assert norm.zero_rows == 1 and norm.variance[0] > 0.1


def test_weights_of_an_initialisation_are_told_from_trained_ones() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48)
    assert "uniformly" in freshness(layer)
    torch.nn.init.normal_(layer.weight, std=0.02)
    assert "normally" in freshness(layer)
    with torch.no_grad():
        layer.weight[:, 3] *= 4  # an input that became important
    assert freshness(layer) == ""
    assert freshness(torch.nn.Linear(4, 4)) == ""  # too few to tell
    assert freshness(torch.nn.LayerNorm(64)) == ""


def test_an_observer_that_fails_is_a_note() -> None:
    """Its mistake is ours: the model's run goes on."""

    class Broken(Observer):
        field = "norms"

        def watch(self, model: Any) -> Any:
            def look(*_: Any) -> None:
                raise RuntimeError("our mistake")

            return [model.register_forward_hook(self.hook(look))]

        def readings(self) -> tuple[Any, ...]:
            return (1,)

    observers = Observers(SETTING)
    observers._observers = [Broken(SETTING)]
    model = torch.nn.Linear(2, 2)
    with observers.forwards(model):
        model(torch.ones(1, 2))
    seen = observers.observations()
    assert seen.norms == () and "our mistake" in seen.notes[0].text
    assert not model._forward_hooks


def test_each_reading_has_one_observer_found_by_its_place() -> None:
    """A file in the folder is all that it takes: there is no list to forget it in."""
    fields = sorted(observer.field for observer in observer_classes())
    frame = {"weights", "inputs", "notes"}
    assert fields == sorted(
        item.name for item in dataclasses.fields(Observations) if item.name not in frame
    )


def test_readings_survive_json() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8, eps=1e-4))
    model.append(torch.nn.LayerNorm(8))
    result = verify_module(model, {"target_modules": ["0"]}, {"input": torch.randn(4, 8)})
    assert result.outcome == "passed", result
    assert result.observations.user_weights and result.observations.norms[0].effects
    again = Verification.from_json(json.loads(json.dumps(result.to_json())))
    assert again.observations == result.observations
    assert Observations.from_json({}) == Observations()


class Block(torch.nn.Module):
    """Multiplies what passes through it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)
        self.factor = factor

    def forward(self, x: Any) -> Any:
        return x + self.factor * torch.tanh(self.inner(x))


def test_each_layer_tells_its_largest_number_and_its_gradient() -> None:
    """By layers with numbers of their own; the one without an adapter has no gradient."""
    model = torch.nn.Sequential(Block(1.0), Block(1000.0), torch.nn.Linear(8, 8))
    result = verify_module(model, {"target_modules": ["0.inner"]}, {"input": torch.randn(4, 8)})
    layers = {layer.path: layer for layer in result.observations.layers}
    assert list(layers) == ["0", "1"], "a single linear layer is no layer of the model"
    small, large = layers["0"], layers["1"]
    assert large.max_abs > 100 > small.max_abs > 0 and large.dtype == "float32"
    assert small.gradient_norm and small.gradient_norm > 0
    assert large.gradient_norm is None and small.finite and large.finite


class Sinks(torch.nn.Module):
    """Its loss is a number until the first step, and none after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.start = torch.nn.Parameter(torch.zeros(4, 4), requires_grad=False)
        self.root = Root()

    def forward(self, x: Any) -> Any:
        moved = self.layer(x) - torch.nn.functional.linear(x, self.start)
        return {"loss": self.root(moved).mean()}


class Root(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.sqrt(1e-6 + x)


def test_a_loss_that_is_lost_after_a_step_is_located() -> None:
    """Before, only the gradients were looked at, and nothing said where the forward broke."""
    model = Sinks()
    torch.nn.init.zeros_(model.layer.weight)
    torch.nn.init.zeros_(model.layer.bias)
    result = verify_module(model, {"target_modules": ["layer"]}, {"x": torch.ones(2, 4)})
    assert result.failure is not None and result.failure.type == "NonFiniteLoss"
    assert result.failure.check == "steps" and result.failure.module == "root"
    assert "inputs" in result.failure.message and "after" in result.failure.message
