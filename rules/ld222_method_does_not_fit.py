"""LD222: a method other than LoRA fails on layers of this model on which LoRA works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    excerpt,
    lora_config_fields,
)
from lora_doctor.rules._ablation import failed_in_training, holds, said, tried
from lora_doctor.rules._prompt_learning import METHODS

if TYPE_CHECKING:
    from lora_doctor.rule_api import Verification

_ADAPTER = frozenset({"peft_type", "task_type"})


class MethodDoesNotFit(Rule):
    """PEFT's code for this method fails on this model, where LoRA on the same layers trains.

    ## What happens
    `get_peft_model` or the first forward raises: Shadow with `Unable to update the model config`
    where the sizes are in a sub-config. Or a gradient is missing, or what was saved gives other
    outputs when it is loaded.

    ## Why
    A method may assume more of a model than LoRA does: plain hidden states between layers, sizes at
    the top of the config, layers that are called with one tensor, on its own.

    ## Versions
    Depends on the installed PEFT and transformers. The recipe was run with the method, and with
    LoRA.

    ## Fix
    LoRA on the same layers. That trains something else, so it is applied only with
    `--unsafe-fixes`.

    ## Links
    https://huggingface.co/docs/peft/package_reference/peft_types
    """

    code = "LD222"
    name = "method-does-not-fit"
    summary = "PEFT's code for this kind of adapter fails on this model, on which LoRA works."
    depth = "tiny"
    about_training = True
    is_comparison = True
    symptoms = (Symptom(r"Unable to update the model config: none of the expected attributes"),)
    examples = (
        Example(
            "broken",
            "arch:qwen2_audio",
            {"peft_type": "SHADOW", "target_modules": ["q_proj"]},
            {"peft": ">=0.21"},
            why="it makes a smaller model of the config, whose sizes are in its parts",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"peft_type": "LOHA", "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        method = case.recipe.peft_type
        if method == "LORA" or method in METHODS:
            return
        failed = failed_in_training(case)
        if not failed:
            return
        edits = _as_lora(case)
        with_lora = tried(case, edits)
        if not holds(with_lora, failed):
            return
        seen = case.verification
        what = excerpt(said(seen, failed[0]))
        source = f"{seen.depth} model, executed"
        yield self.finding(
            "error",
            f"{method} fails on {case.structure.model_class}, where LoRA on the same layers "
            f"trains: {what}",
            location=Location("recipe", "peft_type"),
            evidence=(
                Measurement(f"{method}, failed check {failed[0]}", what, source),
                Measurement("raised in", _where(seen), source),
                Measurement(
                    "LoRA on the same layers", f"checks passed: {', '.join(failed)}", source
                ),
            ),
            proof=Proof("executed", f"the contract was run with {method} and with LoRA"),
            fixes=(Fix("Use LoRA on the same layers.", "unsafe", edits),),
            explains=failed,
        )


def _as_lora(case: Case) -> tuple[Edit, ...]:
    """The edits that make LoRA with its defaults on the same layers."""
    recipe = case.recipe_in_full()
    shared = {"target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"}
    kept = _ADAPTER | (shared & set(lora_config_fields() or ()))
    foreign = [key for key in recipe.adapter_values() if key not in kept]
    return (Edit("peft_type", "LORA"), *(Edit(key, REMOVE) for key in foreign))


def _where(seen: Verification) -> str:
    return (seen.failure.where if seen.failure is not None else "") or "nothing was raised"
