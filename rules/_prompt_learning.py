"""Evidence about prompt learning: adapters that are tokens in front of the input, not layers.

Whether a method fits a model is found out by running it and, where it fails, its alternatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_doctor.rule_api import REMOVE, Case, Edit, Recipe, lora_config_fields

if TYPE_CHECKING:
    pass

#: The methods of PEFT whose config says ``is_prompt_learning``.
METHODS = (
    "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE",
)  # fmt: skip
#: What needs no settings but the number of tokens, in the order in which it would be tried.
_PLAIN = ("PROMPT_TUNING", "PREFIX_TUNING")


def as_lora(case: Case, *, same_task: bool = True) -> tuple[Edit, ...]:
    """The edits that make LoRA of a recipe of prompt learning, with proposed targets and, unless
    ``same_task``, the task type that is proposed for this model.

    Raises:
        EvidenceError: the structure cannot be had.
    """
    recipe = case.recipe_in_full()
    fields = {*(lora_config_fields() or ()), "peft_type", "task_type"}
    foreign = [key for key in recipe.adapter_values() if key not in fields]
    edits = [Edit("peft_type", "LORA"), *(Edit(key, REMOVE) for key in foreign)]
    if not same_task:
        edits.append(Edit("task_type", REMOVE))
    # What is left open is proposed only for a recipe that does not claim to be complete.
    edited = recipe.edit(edits)
    opened = case.again(Recipe(edited.values, edited.origins), case.patches)
    found = opened.recipe_in_full()
    if not same_task:
        edits[-1] = Edit("task_type", found.get("task_type"))
    targets = found.get("target_modules")
    return (*edits, Edit("target_modules", targets)) if targets else tuple(edits)


def with_task_type(case: Case) -> tuple[Edit, ...]:
    """The edit that names the task type, which prompt methods need; empty when it is named."""
    recipe = case.recipe_in_full()
    if recipe.get("task_type"):
        return ()
    opened = case.again(Recipe({}, {}), case.patches)
    proposed = opened.recipe_in_full().get("task_type")
    return (Edit("task_type", proposed),) if proposed else ()


def other_methods(case: Case) -> tuple[tuple[str, tuple[Edit, ...]], ...]:
    """Prompt learning methods to try instead, as name and edits."""
    recipe = case.recipe_in_full()
    tokens = recipe.get("num_virtual_tokens")
    if not tokens:
        return ()
    keep = {"peft_type", "task_type", "num_virtual_tokens"}
    own = [Edit(key, REMOVE) for key in recipe.adapter_values() if key not in keep]
    return tuple(
        (name, (Edit("peft_type", name), *own)) for name in _PLAIN if name != recipe.peft_type
    )
