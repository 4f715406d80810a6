"""Functions on single modules: copies run them on the copy, and those that miss are told from
those that are reached."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

import lora_doctor
from lora_doctor.nn import rebinding
from tests.models import (
    patch_on_the_base,
    patch_on_the_wrapper,
    patch_that_holds_layers,
    patch_that_looks_layers_up,
    scoring_batch,
    scoring_model,
)


def lora(model: Any, **options: Any) -> Any:
    import peft

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options)
    return peft.get_peft_model(model, config)


def wrapper_method() -> Any:
    return patch_on_the_wrapper()[0]


def base_methods() -> Any:
    return patch_on_the_base()[0]


def holds_layers() -> Any:
    return lora(patch_that_holds_layers()[0])


def looks_up() -> Any:
    return lora(patch_that_looks_layers_up()[0])


def old_forward_before() -> Any:
    """The commonest patch of all: the new forward calls the one that was there."""
    base = scoring_model()
    old = base.forward
    base.forward = lambda *args, **kwargs: old(*args, **kwargs)
    return lora(base)


def old_forward_after() -> Any:
    base = scoring_model()
    model = lora(base)
    old = base.forward
    base.forward = lambda *args, **kwargs: old(*args, **kwargs)
    return model


def old_forward_of_the_wrapper() -> Any:
    model = lora(scoring_model())
    old = model.forward
    model.forward = lambda *args, **kwargs: old(*args, **kwargs)
    return model


def on_the_adapted_layer() -> Any:
    from torch import nn

    model = lora(scoring_model())
    layer = model.base_model.model.attention.q_proj
    layer.forward = types.MethodType(
        lambda self, x: nn.functional.linear(x, self.get_base_layer().weight), layer
    )
    return model


def trained_copy_of_a_closure() -> Any:
    base = scoring_model()
    old = base.head.forward
    base.head.forward = lambda x: old(x) * 1.0
    return lora(base, modules_to_save=["head"])


def trained_copy_of_a_method() -> Any:
    from torch import nn

    base = scoring_model()
    base.head.forward = types.MethodType(
        lambda self, x: nn.functional.linear(x, self.weight, self.bias), base.head
    )
    return lora(base, modules_to_save=["head"])


def hooked_by_accelerate() -> Any:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    base = scoring_model()
    for module in base.modules():
        add_hook_to_module(module, AlignDevicesHook(io_same_device=True))
    model = lora(base, modules_to_save=["head"])
    for module in (model, model.base_model.model.attention.v_proj):
        add_hook_to_module(module, AlignDevicesHook(io_same_device=True))
    return model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (wrapper_method, "warning"),
        (holds_layers, "error"),
        (on_the_adapted_layer, "error"),
        (trained_copy_of_a_closure, "error"),
        (base_methods, None),
        (looks_up, None),
        (old_forward_before, None),
        (old_forward_after, None),
        (old_forward_of_the_wrapper, None),
        (trained_copy_of_a_method, None),
        (hooked_by_accelerate, None),
    ],
)
def test_what_misses_is_told_from_what_is_reached(
    make: Callable[[], Any], expected: str | None
) -> None:
    """What is reached also trains, is saved and merged: the copies run the copies' weights."""
    found = lora_doctor.check(make(), batches=[scoring_batch()], ignore=("LD203",))
    severities = [item.severity for item in found.findings if item.rule == "LD504"]
    assert severities == ([] if expected is None else [expected])
    assert "LD001" not in {item.rule for item in found.findings}
    if expected is None:
        assert found.verdict == "healthy", (found.findings, found.undetermined)


def test_a_copy_runs_its_own_weights() -> None:
    """Without rebinding, a copy's patched forward is the original's."""
    import torch

    model = old_forward_before()
    twin = rebinding.deep_copy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    inputs = {"x": scoring_batch()["x"]}
    assert not bool(twin(**inputs)["logits"].any())
    assert bool(model(**inputs)["logits"].any())


def test_the_users_patches_stay() -> None:
    """Counters go onto the copy, and the functions are the user's own objects afterwards."""
    model = base_methods()
    before = [(path, name, id(value)) for path, _, name, value in rebinding.patches(model)]
    lora_doctor.check(model, batches=[scoring_batch()])
    assert before == [(path, name, id(value)) for path, _, name, value in rebinding.patches(model)]


def test_a_function_that_calls_itself_is_copied() -> None:
    """What a function closes over may be itself."""
    model = scoring_model()

    def forward(x: Any, target: Any = None, depth: int = 0) -> Any:
        return forward(x, target, 1) if depth == 0 else type(model).forward(model, x, target)

    model.forward = forward
    twin = rebinding.deep_copy(model)
    assert twin.forward is not forward
    assert rebinding.source_of(forward).endswith(
        f"test_instance_patches.py:{forward.__code__.co_firstlineno}"
    )
