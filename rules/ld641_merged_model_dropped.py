"""LD641: merge_and_unload takes the adapters off a PEFT model, which is saved afterwards."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, merged_and_dropped
from lora_doctor.rules._program import slips


class MergedModelDropped(Rule):
    """The PEFT model is saved after `merge_and_unload()`, and not the result, which was not
    assigned, or which the trainer does not know of.

    ## What happens
    `merge_and_unload()` removes the adapters from the PEFT model and returns the merged base model.
    If the PEFT model is saved after that, `adapter_model.safetensors` has no tensors, or the values
    of no adapter: nothing of the training is on disk, and no error is raised.

    ## Why
    The merged model is what the method returns. The PEFT model still saves as one: only its
    adapters, and it has none left.

    ## Versions
    All versions of PEFT.

    ## Fix
    Keep the result and save that: `merged = model.merge_and_unload()`,
    `merged.save_pretrained(folder)`, and not `trainer.save_model(folder)`.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/lora
    """

    code = "LD641"
    name = "merged-model-dropped"
    summary = "The PEFT model is saved after merge_and_unload, as an empty adapter."
    depth = "static"
    descriptions = (
        Symptom(
            r"\bmerge_and_unload\b.{0,160}\b(?:only|just|empty)\b.{0,40}"
            r"\badapter_(?:config|model)\b"
        ),
        Symptom(
            r"\b(?:no (?:lora )?weights|empty|no tensors)\b.{0,80}\bmerge_and_unload\b.{0,60}"
            r"\bsave"
        ),
        Symptom(
            r"\bmerge_and_unload\b.{0,60}\bsave\w*\b.{0,80}\b(?:no (?:lora )?weights|empty|no "
            r"tensors)\b"
        ),
    )
    told_as = (
        "After merge_and_unload the saved model is like the base model, the training is lost.",
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/merged_and_dropped.py",
            depth="static",
            why="the merged model is what the method returns",
        ),
        Example("healthy", "tests/scripts/merged_and_kept.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        yield from slips(
            self,
            case,
            merged_and_dropped(case.program),
            "{code} removes the adapters from the PEFT model; {other} then saves that model and "
            "not what {code} returns: the trained weights are not saved.",
            "saved",
            "Keep the result of merge_and_unload() and save that.",
        )
