"""LD208 offers names that PEFT takes: of hybrid models it refuses a layer whose weight a kernel
reads, and a fix that names it would not train."""

from __future__ import annotations

import sys
from types import SimpleNamespace as Stub
from typing import Any

import pytest

from lora_doctor.engine.registry import find_rules
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.fix import Fix


class _Case:
    """A case whose PEFT refuses some names."""

    def __init__(self, refused: set[str], targets: list[str] | None = None) -> None:
        self.refused, self.patches = refused, ()
        self.recipe = Recipe({"target_modules": targets or ["q_proj", "v_proj"]})

    def recipe_in_full(self) -> Recipe:
        return self.recipe

    def again(self, recipe: Recipe, patches: Any) -> Any:
        ok = not self.refused & set(recipe.get("target_modules"))
        return Stub(structure=Stub(injection=Stub(ok=ok)))


@pytest.mark.parametrize(
    ("refused", "safety", "targets"),
    [
        (set(), "unsafe", ["q_proj", "v_proj", "in_proj", "out_proj"]),
        ({"out_proj"}, "unsafe", ["q_proj", "v_proj", "in_proj"]),
        ({"out_proj", "in_proj"}, "manual", None),
    ],
)
def test_the_fix_names_what_peft_takes(
    refused: set[str], safety: str, targets: list[str] | None
) -> None:
    rule = next(rule for rule in find_rules() if rule.code == "LD208")
    fix: Fix = sys.modules[rule.__module__]._fix(_Case(refused), ["in_proj", "out_proj"])
    assert fix.safety == safety
    assert [edit.value for edit in fix.edits] == ([targets] if targets else [])
    assert all(name in fix.title for name in refused) or not targets
