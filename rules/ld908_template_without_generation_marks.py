"""LD908: assistant_only_loss is set, but the chat template does not mark the assistant's turns."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import about, looked_at, of_texts, portion, proof, which


class TemplateWithoutGenerationMarks(Rule):
    """`assistant_only_loss` needs a chat template that marks what the assistant generates with `{%
    generation %}` and `{% endgeneration %}`. This one has no such marks.

    ## What happens
    TRL raises, or replaces a template it knows by its own marked version. Frameworks that do not
    check mask everything: the loss is 0, and the run "succeeds".

    ## Why
    Few published templates have the marks. Without them the mask that transformers returns is all
    zeros, and transformers only warns.

    ## Versions
    transformers 4.42 and later return the mask. TRL includes marked templates for well-known models
    from 0.24 on; the installed TRL, if there is one, is checked for it.

    ## Fix
    A template with the marks around the answer and its end-of-turn token (`chat_template_path`); or
    rows of prompt and completion, which need no marks.

    ## Links
    https://huggingface.co/docs/trl/chat_templates
    """

    code = "LD908"
    name = "template-without-generation-marks"
    summary = (
        "assistant_only_loss is set, but the chat template does not mark the assistant's turns."
    )
    depth = "meta"
    symptoms = (
        Symptom(r"it may be missing the `\{% generation %\}` keyword", "TRL"),
        Symptom(r"The chat template is not training-compatible", "TRL"),
        Symptom(r"\bchat template does not contain `?\{% generation %\}"),
    )
    told_as = ("The assistant mask is all zeros, the chat template has no generation tags.",)
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/chatml.jinja",
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
            why="ChatML without marks",
        ),
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/gemma.jinja",
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
            why="Gemma's style",
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
        found = of_texts(case)
        if found.loss_on != "assistant" or found.tokenizer.has_generation_marks:
            return
        if not found.nothing:
            return  # the installed TRL brings a marked template of its own
        rows = found.nothing
        yield about(
            self.finding(
                "error",
                "assistant_only_loss is set, but the chat template has no {% generation %} "
                f"marks: in {portion(rows, found)} nothing is supervised.",
                location=Location("recipe", "assistant_only_loss"),
                evidence=(
                    looked_at(found),
                    Measurement("generation marks", "none", "the chat template"),
                    Measurement(
                        "supervised tokens", found.supervised_tokens, f"of {found.tokens:,}"
                    ),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        "Use your own template (chat_template_path) with {% generation %} "
                        "before the answer and {% endgeneration %} after its end-of-turn token.",
                        "manual",
                    ),
                    Fix(
                        "Or use rows of prompt and completion: the loss is then computed on "
                        "the completion.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )
