"""LD912: training rows do not begin with the prompt as it is at inference."""

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
    The model is trained with another context than it gets at inference. Where the loss starts after
    the prompt, it starts a few tokens too early or too late, depending on the release of TRL.

    ## Why
    The template writes the prompt differently without its answer (it may add `<think>` only then),
    or the last token of the prompt and the first of the answer merge into one.

    ## Versions
    All. Older releases of TRL mask as many tokens as the prompt alone has; later ones start where
    the two differ. Both warn.

    ## Fix
    A template that writes the prompt the same way in both cases; for plain text, a prompt that ends
    at a token boundary: put the space at the beginning of the completion, not at the end of the
    prompt.

    ## Links
    https://huggingface.co/docs/trl/sft_trainer
    """

    code = "LD912"
    name = "prompt-not-a-prefix"
    summary = "Training rows do not begin with the prompt as it is at inference."
    depth = "meta"
    symptoms = (
        Symptom(r"The tokenized prompt is not a prefix of the tokenized prompt\+completion", "TRL"),
        Symptom(r"Mismatch between tokenized prompt and the start of tokenized prompt\+completion"),
    )
    told_as = ("The prompt at inference is not the same as the prompt in training.",)
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
                f"{portion(rows, found)} do not begin with the prompt as the model gets it at "
                "inference.",
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
                        "End the prompt at a token boundary (no trailing space), or use a "
                        "template that writes it the same way with and without the answer.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
