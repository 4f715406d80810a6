"""Modules that a class places by the number of a layer, and that a few layers have none of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.evidence.fewer_layers import fitted, without_absent_targets
from lora_doctor.recipe.files.read_write import as_recipe

torch = pytest.importorskip("torch")


def model(*names: str) -> Any:
    return torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in names})


def never() -> Any:
    raise AssertionError("the model at full size is made only where an entry matches nothing")


def test_a_target_that_only_the_model_at_full_size_has_is_left_out_and_named() -> None:
    recipe = as_recipe({"target_modules": ["q_proj", "gate", "typo"]})
    left, absent = without_absent_targets(recipe, model("q_proj"), lambda: ["typo"])
    assert left.get("target_modules") == ["q_proj", "typo"], "what nobody has fails as it would"
    assert absent == ("gate",)


def test_a_recipe_of_which_nothing_would_be_left_stays() -> None:
    recipe = as_recipe({"target_modules": ["gate"]})
    assert without_absent_targets(recipe, model("q_proj"), never) == (recipe, ())


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear", None])
def test_nothing_is_built_where_every_entry_matches(targets: Any) -> None:
    recipe = as_recipe({"target_modules": targets} if targets else {})
    assert without_absent_targets(recipe, model("q_proj"), never) == (recipe, ())


def layers(*names: str) -> Any:
    """A stack of layers, each with one module of this name."""
    built = torch.nn.Module()
    built.layers = torch.nn.ModuleList(model(name) for name in names)
    return built


def test_a_target_is_looked_up_at_full_size_by_its_own_number() -> None:
    """Layer 2 of three has what its counterpart here, layer 0 of two, has not; the number that it
    gets here would name another kind of layer there."""
    full = layers("cross", "own", "own")
    loader: Any = SimpleNamespace(config=None, build=lambda _device: full)
    recipe = as_recipe({"target_modules": ["layers.1.own", "layers.2.own"]})
    found = fitted(recipe, layers("cross", "own"), loader)
    assert found.recipe.get("target_modules") == ["layers.1.own"]
    assert found.absent == ("layers.0.own",)
