"""LD522: a trainer gets peft_config and a model that already has adapters."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, adapted_by_the_trainer_too
from lora_doctor.rules._program import slips


class PeftConfigForAdaptedModel(Rule):
    """A trainer gets a `peft_config` and a model that already has adapters.

    ## What happens
    TRL raises, or merges the first adapter into the base; PEFT freezes or replaces it. The saved
    adapter is not the intended one.

    ## Why
    A trainer that gets a `peft_config` calls `get_peft_model` itself, which modifies the model in
    place.

    ## Versions
    All versions of PEFT and TRL.

    ## Fix
    Keep one of the two: remove the trainer's `peft_config`, or, by hand, the earlier call. A second
    call of `get_peft_model` is LD507.

    ## Links
    https://huggingface.co/docs/trl/peft_integration
    """

    code = "LD522"
    name = "peft-config-for-adapted-model"
    summary = "A trainer gets a peft_config and a model that already has adapters."
    depth = "static"
    symptoms = (Symptom(r"passed a `?PeftModel`? instance together with a `?peft_config`?"),)
    descriptions = (
        Symptom(r"\b(?:peft|lora|adapters?)\b.{0,30}\b(?:applied|wrapped) twice"),
        Symptom(r"\bget_peft_model\b.{0,80}\bpeft_config\b"),
    )
    told_as = ("The trainer refuses a peft_config, because its model is a PeftModel already.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/adapted_twice.py",
            depth="static",
            why="the trainer puts its own on top",
        ),
        Example("healthy", "tests/scripts/adapted_by_the_trainer.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        yield from slips(
            self,
            case,
            adapted_by_the_trainer_too(case.program),
            "{code} adds adapters to a model that already has some from {other}.",
            "adapters first added",
            "Remove peft_config from this call: the adapters that the model already has are then "
            "trained.",
        )
