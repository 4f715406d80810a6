"""LD912: the prompt as it is at inference is not how the row begins."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Measurement,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import (
    about,
    is_few,
    looked_at,
    loss_on,
    of_data,
    of_texts,
    portion,
    proof,
    which,
)


class PromptNotAPrefix(Rule):
    """The tokens of the prompt alone (with the generation prompt) are not the first tokens of
    prompt and answer together.

    ## What happens
    The model is trained behind another context than it gets at inference. Where the loss begins at
    the prompt's end, it begins a few tokens too early or too late, by release of TRL.

    ## Why
    The template writes the prompt alone otherwise than with its answer (it opens `<think>` only
    then), or the last token of the prompt and the first of the answer become one.

    ## Versions
    All. Older releases of TRL mask as many tokens as the prompt alone has; later ones begin where
    the two differ. Both warn.

    ## Fix
    A template that writes the prompt the same way in both cases; for texts, a prompt that ends
    where a token ends, such as the space at the beginning of the completion and not at the end of
    the prompt.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD912"
    name = "prompt-not-a-prefix"
    summary = "The prompt as it is at inference is not how the row begins."
    depth = "meta"
    symptoms = (
        Symptom(r"The tokenized prompt is not a prefix of the tokenized prompt\+completion", "TRL"),
        Symptom(r"Mismatch between tokenized prompt and the start of tokenized prompt\+completion"),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/pairs_merged.jsonl",
            depth="meta",
            why="the prompt ends in a space, which is a part of the next word's token",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/pairs.jsonl",
            depth="meta",
            why="the completion begins with the space",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = of_texts(case)
        rows = found.prompt_not_prefix
        if not rows:
            return
        yield about(
            self.finding(
                "info" if is_few(rows, found) else "warning",
                f"In {portion(rows, found)} the prompt, as the model gets it at inference, is not "
                f"how the "
                "training row begins.",
                location=of_data(case),
                evidence=(
                    looked_at(found),
                    loss_on(found),
                    Measurement("rows with a prompt", found.prompts, "tokenized by itself as well"),
                    Measurement("not a prefix", rows.count, "token by token"),
                    Measurement(
                        "generation prompt",
                        found.tokenizer.generation_prompt or "none",
                        "the chat template",
                    ),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        "Let the prompt end where a token ends (no space at its end), or use a "
                        "template "
                        "that writes it the same way with and without the answer.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
