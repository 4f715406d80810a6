"""LD521: a saved adapter is loaded for inference and trained."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, loaded_frozen
from lora_doctor.rules._program import slips


class AdapterLoadedFrozen(Rule):
    """A saved adapter is loaded without `is_trainable=True`, and the model is then trained.

    ## What happens
    The adapter is frozen. `trainer.train()` stops with `element 0 of tensors does not require
    grad`, or the optimizer with `optimizer got an empty parameter list`.

    ## Why
    `PeftModel.from_pretrained` loads adapters for inference by default.

    ## Versions
    All versions of PEFT.

    ## Fix
    `is_trainable=True` in that call.

    ## Links
    https://huggingface.co/docs/peft/package_reference/peft_model
    """

    code = "LD521"
    name = "adapter-loaded-frozen"
    summary = "A saved adapter is loaded without is_trainable and then trained."
    depth = "static"
    symptoms = (
        Symptom(r"optimizer got an empty parameter list", weight=-1),
        Symptom(r"trainable params:\s*0(?![,\d]|\.\d)", weight=-1),
        Symptom(r"(?i)\bno trainable param\w*", context=r"PeftModel\.from_pretrained"),
    )
    told_as = (
        "A loaded adapter cannot be trained further, its parameters are frozen.",
        "Continuing the training of a saved adapter fails: nothing is trainable.",
        "The adapter is loaded, and its trainable parameters are 0.",
        "Training of a loaded adapter is continued, and nothing is trainable.",
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/adapter_frozen.py",
            depth="static",
            why="goes on from a saved adapter",
        ),
        Example("healthy", "tests/scripts/adapter_trainable.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run") and case.dry_run.frozen is not None:
            return  # LD502 tells it, of the model that was loaded
        yield from slips(
            self,
            case,
            loaded_frozen(case.program),
            "{code} loads the adapter frozen, and the model is trained in {other}.",
            "trains the model",
            "Load it with is_trainable=True.",
        )
