"""LD323: a script merges its adapters into the quantized weights that it trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    merged_after_wrapping,
)
from lora_doctor.rules._program import PROOF
from lora_doctor.rules._quantized import in_bits
from lora_doctor.rules._round_trip import MERGED_HERE, quantized_merge

if TYPE_CHECKING:
    from lora_doctor.rule_api import QuantizedMerge


class MergedIntoQuantizedWeights(Rule):
    """The script calls `merge_and_unload` (or `merge_adapter`) on the model that it loaded in 4 or
    8 bits and trained.

    ## What happens
    Many kinds of adapter have no merge for quantized layers: PEFT raises after the training, or
    does not know the layer. LoRA merges: the sum is quantized again, and the merged model differs
    from the trained one by that rounding.

    ## Why
    Merging adds the update to the weight. A 4-bit weight has to be dequantized for that and
    quantized again, which each kind of adapter has to implement for each kind of layer.

    ## Versions
    Depends on the installed PEFT: an adapted layer of a small model is copied and merged.

    ## Fix
    Save the adapter, load the base model again in 16 bits, put the adapter on with
    `PeftModel.from_pretrained`, and merge there.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/model_merging
    """

    code = "LD323"
    name = "merged-into-quantized-weights"
    summary = "A script merges its adapters into the quantized weights that it trained on."
    depth = "static"
    symptoms = (Symptom(r"Merge \w+ module to (?:4|8)-bit linear may get different generations"),)
    descriptions = (
        Symptom(
            r"\bmerg\w*\b.{0,60}\b(?:4.?bit|8.?bit|quantized|qlora)\b.{0,80}\b(?:garbage|worse"
            r"|differ\w*|nonsense|gibberish|quality)"
        ),
        Symptom(
            r"\b(?:4.?bit|8.?bit|qlora)\b.{0,60}\bmerg\w*\b.{0,80}\b(?:garbage|worse|differ\w*"
            r"|nonsense|gibberish|quality)"
        ),
    )
    told_as = (
        "After merge_and_unload into the 4-bit model the quality is worse than with the adapter.",
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/merged_into_4bit.py",
            depth="static",
            why="merged after training in 4 bits",
        ),
        Example("healthy", "tests/scripts/prepared_first.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        merge = next(merged_after_wrapping(case.program), None)
        if merge is None or not case.recipe.quantized:
            return
        tried = quantized_merge(case)
        error = tried.error if tried is not None else None
        kind = case.recipe.peft_type
        message = (
            f"{merge.code} will fail: PEFT cannot merge {kind} adapters into these quantized "
            f"layers: {str(error)[:200]}."
            if error is not None
            else f"{merge.code} merges into weights in {in_bits(case.recipe.quantized)} and rounds "
            "them again: the merged model is not exactly the trained one."
        )
        yield self.finding(
            "info" if error is None else "error",
            message,
            location=Location("file", merge.place.file, merge.place.line),
            evidence=(
                Measurement("the call", merge.code, str(merge.place)),
                Measurement("adapters added", merge.other_code, str(merge.other_place)),
                *_measured(tried),
            ),
            proof=PROOF if tried is None else Proof("executed", MERGED_HERE),
            fixes=(
                Fix(
                    "Save the adapter, load the base model again in 16 bits, and merge with "
                    "PeftModel.from_pretrained(base, folder).merge_and_unload().",
                    "manual",
                ),
            ),
        )


def _measured(tried: QuantizedMerge | None) -> Iterator[Measurement]:
    if tried is None:
        return
    if tried.error is not None:
        yield Measurement("what PEFT raises", str(tried.error)[:500], MERGED_HERE)
    elif tried.difference is not None:
        text = f"relative difference {tried.difference:.2g}"
        yield Measurement("output of a layer, merged", text, f"{MERGED_HERE} ({tried.layer})")
