"""LD904: the token that ends an answer is masked in the labels."""

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
from lora_doctor.rules._supervision import about, looked_at, loss_on, of_data, portion, proof, which


class EndOfAnswerMasked(Rule):
    """The answer is supervised, but the token that ends it (`<|im_end|>`, `</s>`) is not.

    ## What happens
    The loss looks normal. The model never learns to end an answer, and generation continues up to
    its limit, often inventing the user's next turn.

    ## Why
    The template's `{% endgeneration %}` is before the end-of-turn token, or the mask stops at the
    last word of the answer.

    An end token that is masked because it is also the padding token is LD906.

    ## Versions
    All. TRL warns about such a template from 1.0 on.

    ## Fix
    Move the end-of-turn token inside `{% generation %}...{% endgeneration %}`, or extend the mask
    by one token.

    ## Links
    https://huggingface.co/docs/transformers/chat_templating
    """

    code = "LD904"
    name = "end-of-answer-masked"
    summary = "The token that ends an answer is masked in the labels."
    depth = "meta"
    symptoms = (
        Symptom(r"does not include the assistant turn's end-of-turn token in the loss mask", "TRL"),
    )
    told_as = ("The EOS token of the answers is masked with -100 in the labels.",)
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/chatml_end_outside.jinja",
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
            why="endgeneration stands before <|im_end|>",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/chatml_marked.jinja",
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.supervision
        rows = found.end_masked
        if rows.count <= found.end_masked_as_pad.count:
            return
        end = found.tokenizer.end_name
        yield about(
            self.finding(
                "warning",
                f"{end} follows the answer in {portion(rows, found)} but is not supervised: "
                "the model does not learn where an answer ends.",
                location=of_data(case),
                evidence=(
                    looked_at(found),
                    loss_on(found),
                    Measurement("end-of-answer token", end, "the chat template, or the tokenizer"),
                    Measurement("rows in which it is masked", rows.count, "label -100"),
                    Measurement("rows in which it is supervised", found.end_trained.count, "label"),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        f"Put {end} inside the generation marks of the template, or extend the "
                        "mask to include it.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
