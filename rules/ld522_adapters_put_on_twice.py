"""LD522: adapters are put on a model that has some."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, adapted_twice
from lora_doctor.rules._program import slips


class AdaptersPutOnTwice(Rule):
    """A second `get_peft_model`, or a trainer with `peft_config`, on a model that has adapters.

    ## What happens
    TRL refuses it, or merges the first adapter away; PEFT freezes or replaces it. What is saved
    is not what was meant.

    ## Why
    A trainer that is given a `peft_config` calls `get_peft_model` itself, and that function
    changes the model that it is given.

    ## Versions
    All of PEFT and TRL.

    ## Fix
    One of the two: the `peft_config` of the trainer goes, or the call before it. A second call
    of `get_peft_model` is taken out by hand.

    ## Links
    https://huggingface.co/docs/trl/peft_integration
    """

    code = "LD522"
    name = "adapters-put-on-twice"
    summary = "A model that has adapters is given others, by get_peft_model or the trainer."
    depth = "static"
    symptoms = (Symptom(r"passed a `?PeftModel`? instance together with a `?peft_config`?"),)
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
            adapted_twice(case.program),
            "{code} puts adapters on a model that has had some since {other}.",
            "adapters are put on first",
            "Leave it to one of the two: without this one, the adapters that are on the model "
            "train.",
        )
