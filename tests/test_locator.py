"""Where something went wrong: module, number, line."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lora_doctor.contract.backward import BackwardLocator  # noqa: E402
from lora_doctor.contract.locator import Locator, all_finite, first_bad_gradient  # noqa: E402
from lora_doctor.text import clean_path, one_line, where  # noqa: E402


class Overflow(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x / 0


class Raises(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        raise ValueError("wrong\n  shape")


class Catches(torch.nn.Module):
    """Tries one way and takes another when it fails, as some models do."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = Raises()
        self.good = torch.nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        try:
            return self.broken(x)
        except ValueError:
            return self.good(x)


def sequence(*modules: Any) -> Any:
    return torch.nn.Sequential(*modules)


def test_first_module_that_makes_bad_numbers() -> None:
    model = sequence(torch.nn.Linear(2, 2), Overflow(), torch.nn.Linear(2, 2))
    with Locator(model, look=True) as locator:
        model(torch.ones(1, 2))
    bad = locator.non_finite
    assert bad is not None and bad.path == "1" and bad.class_name == "Overflow"
    assert bad.input_finite and bad.output_range is None and bad.input_range is not None
    assert "1 (Overflow, float32) makes non-finite values" in str(bad)


def test_bad_input_is_only_passed_on() -> None:
    model = sequence(torch.nn.Linear(2, 2))
    with Locator(model, look=True) as locator:
        model(torch.full((1, 2), float("nan")))
    assert locator.non_finite is not None and not locator.non_finite.input_finite


def test_healthy_model_has_no_bad_module_and_keeps_no_hook() -> None:
    model = sequence(torch.nn.Linear(2, 2))
    with Locator(model, look=True) as locator:
        model(torch.ones(1, 2))
    assert locator.non_finite is None and locator.running == ""
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_module_that_was_running() -> None:
    model = sequence(Catches(), sequence(torch.nn.ReLU(), Raises()))
    with pytest.raises(ValueError), Locator(model) as locator:
        model(torch.ones(1, 2))
    assert locator.running == "1.1"  # and not the one whose exception was caught


def test_gradient_that_breaks_first_in_the_backward() -> None:
    model = sequence(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with Locator(model) as locator:
        hidden = model[1](model[0](torch.ones(1, 2)))
        loss = ((hidden - hidden).sqrt() + model[2](hidden)).sum()
    assert first_bad_gradient(model, locator.order) is None
    loss.backward()
    found = first_bad_gradient(model, locator.order)
    assert found is not None and found[0].startswith("1.")


class Steep(torch.nn.Module):
    """Finite forward, infinite slope: the square root of zeros."""

    def forward(self, x: Any) -> Any:
        return x + (x - x).clamp(min=0).sqrt()


class Branches(torch.nn.Module):
    """One tensor taken by a good and a bad module: their gradients meet in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, 2)
        self.good = torch.nn.Linear(2, 2)
        self.steep = Steep()

    def forward(self, x: Any) -> Any:
        hidden = self.first(x)
        return self.good(hidden) + self.steep(hidden)


def backward_of(model: Any, *, frozen: bool = False) -> Any:
    model.requires_grad_(not frozen)
    inputs = torch.full((1, 2), 3.0, requires_grad=frozen)
    with BackwardLocator(model) as locator:
        model(inputs).sum().backward()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return locator.found


def test_module_of_the_backward_that_makes_a_bad_gradient() -> None:
    """Not the one whose parameter has it: that one was only handed it."""
    bad = backward_of(sequence(torch.nn.Linear(2, 2), Steep(), torch.nn.Linear(2, 2)))
    assert bad is not None and bad.made and bad.path == "1" and bad.class_name == "Steep"
    assert bad.parameter.startswith("0.") and bad.dtype == "float32"
    assert bad.input_range is not None and bad.gradient_range is not None
    assert "1 (Steep, float32) is the first to hand back" in str(bad)


def test_gradients_that_meet_in_one_tensor_are_told_apart() -> None:
    bad = backward_of(Branches())
    assert bad is not None and bad.made and bad.path == "steep"


def test_an_operation_between_modules_is_told_by_the_module_before_it() -> None:
    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            hidden = self.inner(x)
            return (hidden - hidden).clamp(min=0).sqrt()

    bad = backward_of(Root())
    assert bad is not None and not bad.made and bad.path == "inner"
    assert "is the first that a gradient reaches which is not finite" in str(bad)


def test_frozen_modules_are_seen_too() -> None:
    """Under LoRA most modules have no trained parameter that could hold the bad gradient."""
    bad = backward_of(sequence(torch.nn.Linear(2, 2), Steep()), frozen=True)
    assert bad is not None and bad.path == "1" and not bad.parameter


def test_finite_gradients_find_nothing() -> None:
    assert backward_of(sequence(torch.nn.Linear(2, 2), torch.nn.ReLU())) is None


def test_gradient_overflow_in_half_precision() -> None:
    """The forward is finite, what goes back is beyond 65504."""
    model = sequence(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)).half()
    with torch.no_grad():
        model[1].weight.fill_(300.0)
    with BackwardLocator(model) as locator:
        (model(torch.full((1, 2), 1e-3, dtype=torch.float16)).sum() * 300).backward()
    bad = locator.found
    assert bad is not None and bad.path == "1" and bad.dtype == "float16" and bad.made
    assert bad.gradient_range == (300.0, 300.0)


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("base_model.model.model.layers.0.q.lora_A.default", "model.layers.0.q.lora_A.default"),
        ("base_model.model.base_model.model.lm_head", "lm_head"),
        ("base_model.model.layers.0.experts.base_layer", "layers.0.experts"),
        ("base_model", ""),
        ("model.layers.1", "model.layers.1"),
    ],
)
def test_paths_without_the_wrapper(path: str, clean: str) -> None:
    assert clean_path(path) == clean


def test_module_reprs_in_messages_are_shortened() -> None:
    model = sequence(*(sequence(torch.nn.Linear(2, 2)) for _ in range(50)))
    error = TypeError(f"{model!r} got multiple values for keyword argument 'input_ids'")
    text = "Sequential(…) got multiple values for keyword argument 'input_ids'"
    assert one_line(error) == text
    assert one_line(ValueError("a\n  b")) == "a b"
    assert len(one_line(ValueError("x" * 10_000))) == 500


def test_unprintable_exception() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert "RuntimeError" in one_line(Rude())


def test_line_of_the_users_code() -> None:
    with pytest.raises(RuntimeError) as caught:
        sequence(torch.nn.Linear(2, 2))(torch.ones(1, 3))
    assert where(caught.value).startswith(__file__)  # torch's frames below it say little
    assert where(ValueError("never raised")) == ""


def test_finite_looks_into_everything() -> None:
    assert all_finite({"a": [torch.ones(2)], "b": torch.ones(1, dtype=torch.int64), "c": "text"})
    assert not all_finite(({"a": [torch.tensor(float("inf"))]},))
