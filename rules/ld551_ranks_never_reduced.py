"""LD551: AdaLoRA is trained without the call that distributes its ranks."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    has_unread_callback,
)
from lora_doctor.static.installed.rank_allocation import ALLOCATES, trainer_allocates


class RanksNeverReduced(Rule):
    """AdaLoRA reduces and redistributes ranks in `update_and_allocate`, which nothing calls.

    ## What happens
    Training runs, and every adapter keeps `init_r`: `target_r`, `tinit`, `tfinal` and `deltaT` have
    no effect. The adapter is larger than intended, and is saved without a `rank_pattern`. No error
    is raised.

    ## Why
    PEFT expects the training loop to call `model.base_model.update_and_allocate(step)` after each
    optimizer step. The Trainer of transformers does not.

    ## Versions
    All versions of PEFT; the source of the installed Trainers is searched for the call.

    ## Fix
    By hand: call it in `on_optimizer_step` of a `TrainerCallback`, before the gradients are zeroed,
    or use LoRA.

    ## Links
    https://huggingface.co/docs/peft/package_reference/adalora
    """

    code = "LD551"
    name = "ranks-never-reduced"
    summary = "AdaLoRA is trained without the call that distributes its ranks."
    depth = "static"
    descriptions = (
        Symptom(r"\badalora\b.{0,120}\b(?:update_and_allocate|rank_pattern)\b"),
        Symptom(r"\badalora\b.{0,80}\branks?\b.{0,40}\b(?:never|not|stays?|constant)\b"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/adalora_by_trainer.py",
            depth="static",
            why="the Trainer does not call update_and_allocate",
        ),
        Example("healthy", "tests/scripts/adalora_with_callback.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        setup = case.program
        trainer = setup.roles.trainer
        if str(case.asked.get("peft_type") or "").upper() != "ADALORA" or trainer is None:
            return
        if trainer_allocates() or any(ALLOCATES in unit.text for unit in setup.program.units):
            return
        if has_unread_callback(setup):
            raise EvidenceError("a callback of the trainer is not in the files of the script")
        config = setup.parts.get("adapter")
        yield self.finding(
            "warning",
            f"{trainer.method} does not call {ALLOCATES}, and neither does the script: every "
            "adapter keeps its initial rank, and target_r has no effect.",
            location=Location("file", trainer.place.file, trainer.place.line),
            evidence=(
                Measurement(f"calls of {ALLOCATES}", 0, "the script, the installed Trainers"),
                *((Measurement("AdaLoRA", config.method, str(config.place)),) if config else ()),
            ),
            proof=Proof("read", "the script and the source of the installed Trainers"),
            fixes=(
                Fix(
                    "Call model.base_model.update_and_allocate(state.global_step) in "
                    "on_optimizer_step of a TrainerCallback, or use LoRA.",
                    "manual",
                ),
            ),
        )
