"""LD110: the model requires an argument in training that a text collator does not send."""

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
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import AddedInput, BatchReport


class InputNotSentForText(Rule):
    """In training, the forward of a multimodal class requires an argument that its processor makes
    and its tokenizer does not, so training on text alone fails.

    ## What happens
    `ValueError: token_type_ids is required as a model input when training`, at the first step, with
    a text dataset that was tokenized with the tokenizer. Inference works.

    ## Why
    The class builds its attention mask from an argument that marks image tokens, and has no default
    for text without images. Its processor adds that argument to every batch. A text collator
    (`DataCollatorForLanguageModeling`, TRL's) only pads what the tokenizer returned, and that is
    the `model_input_names` of the tokenizer's class.

    ## Versions
    Gemma 3, PaliGemma and Git in transformers 5.1, not in 5.23; Molmo 2 in 5.24. Which argument it
    is, is found by running the forward; who makes it is read from the classes of the installed
    transformers. An argument that none of them makes is reported as info: lora-doctor adds it to
    its own batch, and your code has to add it to yours.

    ## Fix
    Tokenize with the processor. Or add the argument in the collator, zeros for text. Or load the
    class for text alone (`Gemma3ForCausalLM`), which does not ask for it.

    ## Links
    https://github.com/huggingface/trl/issues/5807
    """

    code = "LD110"
    name = "input-not-sent-for-text"
    summary = "Training on text alone lacks an argument that only the processor makes."
    depth = "tiny"
    symptoms = (Symptom(r"`(?:mm_)?token_type_ids` is required as a model input when training"),)
    descriptions = (
        Symptom(r"\b(?:mm_)?token_type_ids\b.{0,20}\b(?:is|are) (?:required|missing)\b"),
    )
    examples = (
        Example(
            "broken",
            "arch:molmo2",
            requires={"transformers": ">=5.23"},
            why="its tokenizer returns no mm_token_type_ids, without which it does not train",
        ),
        Example("healthy", "arch:llama"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = case.verification
        for batch in seen.batches:
            missing = [one for one in batch.added if not one.by_tokenizer and _said(case, one)]
            if batch.kind == "text" and missing:
                yield self._finding(case, batch, missing[0])
                return

    def _finding(self, case: Case, batch: BatchReport, one: AddedInput) -> Finding:
        model = case.structure.model_class
        fix = (
            f"Tokenize with {one.processor}, which makes {one.name}; or add {one.name} in the "
            "collator, as zeros in the shape of input_ids."
        )
        if one.processor:
            message = (
                f"{model} does not train on text alone: its forward requires {one.name}, which "
                f"{one.processor} makes and {one.tokenizer} does not."
            )
        else:
            fix = f"Add {one.name} in your own dataset or collator."
            message = (
                f"{model} requires {one.name}, which no tokenizer, processor or collator of "
                "transformers makes for it; lora-doctor added it to its own batch."
            )
        return self.finding(
            "warning" if one.processor else "info",
            message,
            location=Location("module", model),
            evidence=(
                Measurement("added to the batch", one.name, f"{case.verification.depth} model, "
                            "forward raised without it"),
                Measurement("the tokenizer returns it", "no",
                            f"model_input_names of {one.tokenizer}, installed transformers"),
                Measurement("the processor makes it", one.processor or "no",
                            "installed transformers"),
                *(Measurement("forward raised", note.reason[:200], f"{batch.kind} batch")
                  for note in batch.notes if one.name in note.reason),
            ),
            proof=Proof("executed", "the forward was run without it, and raised"),
            fixes=(Fix(fix, "manual"),),
        )  # fmt: skip


def _said(case: Case, one: AddedInput) -> bool:
    """Not where the model's own tokenizer is set to return it."""
    if not case.has("static"):
        return True
    settings = case.static.tokenizer_config.value or {}
    return one.name not in (settings.get("model_input_names") or ())
