"""LD560: the script makes all parameters trainable, or freezes them, after the adapters exist."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, all_set_trainable
from lora_doctor.rules._program import slips


class AllParametersSwitched(Rule):
    """The script sets `requires_grad` of every parameter after `get_peft_model`, which had set it
    for the adapters, and before the training.

    ## What happens
    `False`: the adapters are frozen as well, and training raises `element 0 of tensors does not
    require grad`, or learns nothing. `True`: the whole base model is trained, with the memory that
    this takes, but the adapter folder has only the adapters, so that what is loaded later is
    another model. On quantized weights it raises `only Tensors of floating point and complex dtype
    can require gradients`.

    ## Why
    `get_peft_model` freezes the base model and leaves the adapters trainable. A loop over
    `model.parameters()` after it includes both.

    ## Versions
    All.

    ## Fix
    By hand: remove the loop, or run it before `get_peft_model`, which freezes the base model by
    itself.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD560"
    name = "all-parameters-switched"
    summary = "All parameters are made trainable, or frozen, after the adapters were added."
    depth = "static"
    symptoms = (
        Symptom(r"only Tensors of floating point and complex dtype can require gradients",
                weight=-1),
    )  # fmt: skip
    examples = (
        Example(
            "broken",
            "tests/scripts/all_frozen.py",
            depth="static",
            why="the loop freezes the adapters",
        ),
        Example("healthy", "tests/scripts/base_frozen_first.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for trainable, slip in all_set_trainable(case.program):
            effect = (
                "also trains the base model, which is not saved with the adapter."
                if trainable
                else "freezes them, and nothing is left to train."
            )
            yield from slips(
                self,
                case,
                (slip,),
                "{code} also covers the adapters, which were added before, in {other}: "
                f"requires_grad={trainable} {effect}",
                "adapters added",
                "Remove this statement; get_peft_model freezes the base model and leaves the "
                "adapters trainable.",
            )
