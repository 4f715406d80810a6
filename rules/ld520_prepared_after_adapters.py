"""LD520: prepare_model_for_kbit_training is called after the adapters were added."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, prepared_after_adapters
from lora_doctor.rules._program import slips


class PreparedAfterAdapters(Rule):
    """`prepare_model_for_kbit_training` is called on a model that already has adapters.

    ## What happens
    Every parameter is frozen, including those of the adapters. The loss has no gradient (`element 0
    of tensors does not require grad`), or the run goes on and saves the untrained adapter.

    ## Why
    The function freezes all parameters of the model: it is written for the base model and does not
    exclude adapters.

    ## Versions
    All versions of PEFT.

    ## Fix
    Call it before `get_peft_model`. The line is moved if both are in the same block.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/quantization
    """

    code = "LD520"
    name = "prepared-after-adapters"
    summary = "prepare_model_for_kbit_training comes after the adapters and freezes them."
    depth = "static"
    symptoms = (
        Symptom(r"element 0 of (?:tensors|variables) does not require grad", weight=-1),
        Symptom(r"trainable params:\s*0(?![.,\d])", weight=-1),
    )
    told_as = (
        "prepare_model_for_kbit_training is called after get_peft_model and freezes the adapters.",
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/prepared_too_late.py",
            depth="static",
            why="prepared after get_peft_model",
        ),
        Example("healthy", "tests/scripts/prepared_first.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        yield from slips(
            self,
            case,
            prepared_after_adapters(case.program),
            "{code} freezes every parameter, including the adapters, which were added before, in "
            "{other}: nothing is left to train.",
            "adapters added",
            "Call prepare_model_for_kbit_training before get_peft_model.",
        )
