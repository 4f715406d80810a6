"""LD110: the model wants an argument in training that a collator for text does not send."""

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
    """The forward of a multimodal class raises in training without an argument that its processor
    makes and its tokenizer does not, so that training on text alone fails.

    ## What happens
    `ValueError: token_type_ids is required as a model input when training`, at the first step, from
    a data set of text that was tokenized with the tokenizer. Inference works.

    ## Why
    The class builds its attention mask from the marks of image tokens and does not assume that
    there are none. Its processor marks them in every batch. A collator for text
    (`DataCollatorForLanguageModeling`, TRL's) pads what the tokenizer returned, which is what
    `model_input_names` of its class says.

    ## Versions
    Gemma 3, PaliGemma and Git in transformers 5.1, not in 5.23; Molmo 2 in 5.24. Which argument it
    is comes from running the forward, and who sends it from the classes of the installed
    transformers. An argument that none of these makes is told as info: the batch has it from
    lora-doctor, and your own code has to make it.

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
        words = f"Add {one.name} in the collator: zeros, in the shape of input_ids."
        use = f"Tokenize with {one.processor}, which makes {one.name}. Or: "
        if one.processor:
            message = (
                f"{model} does not train on text alone as {one.tokenizer} sends it: its forward "
                f"raises without {one.name}, which {one.processor} makes."
            )
        else:
            words, use = f"Make {one.name} in your own data or collator.", ""
            message = (
                f"{model} raises without {one.name}, which no tokenizer, processor or collator of "
                "transformers makes for it; the batch here has values of lora-doctor's."
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
            proof=Proof("executed", "the forward was run without it and raised"),
            fixes=(Fix(use + words, "manual"),),
        )  # fmt: skip


def _said(case: Case, one: AddedInput) -> bool:
    """Not where the model's own tokenizer is set to return it."""
    if not case.has("static"):
        return True
    settings = case.static.tokenizer_config.value or {}
    return one.name not in (settings.get("model_input_names") or ())
