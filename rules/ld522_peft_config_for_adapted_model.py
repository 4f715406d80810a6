"""LD522: a trainer is given peft_config and a model that has adapters."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, adapted_by_the_trainer_too
from lora_doctor.rules._program import slips


class PeftConfigForAdaptedModel(Rule):
    """A trainer is given a `peft_config` and a model that has adapters already.

    ## What happens
    TRL refuses it, or merges the first adapter away; PEFT freezes or replaces it. What is saved
    is not what was meant.

    ## Why
    A trainer that is given a `peft_config` calls `get_peft_model` itself, and that function
    changes the model that it is given.

    ## Versions
    All versions of PEFT and TRL.

    ## Fix
    One of the two: the `peft_config` of the trainer is taken out, or by hand the call before it.
    A second call of `get_peft_model` is LD507.

    ## Links
    https://huggingface.co/docs/trl/peft_integration
    """

    code = "LD522"
    name = "peft-config-for-adapted-model"
    summary = "A trainer is given a peft_config and a model that has adapters already."
    depth = "static"
    symptoms = (Symptom(r"passed a `?PeftModel`? instance together with a `?peft_config`?"),)
    descriptions = (
        Symptom(r"\b(?:peft|lora|adapters?)\b.{0,30}\b(?:applied|wrapped) twice"),
        Symptom(r"\bget_peft_model\b.{0,80}\bpeft_config\b"),
    )
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
            "{code} puts adapters on a model that has had some since {other}.",
            "adapters are put on first",
            "Leave it to one of the two: without this one, the adapters that are on the model "
            "train.",
        )
