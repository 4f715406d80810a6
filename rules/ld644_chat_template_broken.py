"""LD644: the chat template in the model's folder formats no conversation."""

from __future__ import annotations

from collections.abc import Iterator

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


class ChatTemplateBroken(Rule):
    """The chat template is not valid Jinja, or calls a function that the installed transformers
    does not give to templates.

    ## What happens
    The tokenizer loads: a template is compiled when the first conversation is formatted.
    `apply_chat_template`, and every trainer that gets conversations, then raises
    `TemplateSyntaxError`, or `UndefinedError: 'strftime_now' is undefined`.

    ## Why
    The template was edited by hand, lost a line or an escape on its way into JSON, or uses tags,
    filters or functions of a newer transformers (`{% generation %}`, `strftime_now`).

    Training on rows that are text already does not use the template. With `--data` the rows
    themselves are formatted (LD919). A template that refuses a conversation by `raise_exception` is
    not reported here.

    ## Versions
    Asked of the installed transformers, which compiles the template and formats short
    conversations with it.

    ## Fix
    Take the template from the model's page again, correct the line that is named, or name another
    one (`chat_template_path`).

    ## Links
    https://huggingface.co/docs/transformers/chat_templating
    """

    code = "LD644"
    name = "chat-template-broken"
    summary = "The chat template in the model's folder cannot format a conversation."
    depth = "meta"
    symptoms = (
        Symptom(r"jinja2\.exceptions\.Template(?:Syntax|Assertion)Error"),
        Symptom(r"UndefinedError: '(?:strftime_now|raise_exception)' is undefined"),
    )
    examples = (
        Example(
            "broken",
            "tests.chat_templates:cut_off",
            {"target_modules": ["q_proj"]},
            loaded=True,
            depth="meta",
            why="a {% for %} without its {% endfor %}",
        ),
        Example(
            "healthy", "tests/folders/chat_model", {"target_modules": ["q_proj"]}, depth="meta"
        ),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        if case.settings.data is not None or case.recipe.get("chat_template_path"):
            return
        if case.has("set_up") and case.set_up.format == "LLaMA-Factory":  # it has its own templates
            return
        found = case.chat_template
        if not found.error:
            return
        yield self.finding(
            "warning",
            "The chat template cannot format a conversation, so training on conversations "
            "will fail: "
            f"{found.error}: {found.message[:200].rstrip('. ')}.",
            location=Location("file", found.file),
            evidence=(
                Measurement("exception", f"{found.error}: {found.message}", "apply_chat_template"),
                Measurement("line of the template", found.line or "not named", "jinja2"),
            ),
            proof=Proof("measured", "short conversations were formatted with it"),
            fixes=(
                Fix(
                    "Take the template from the model's page again, or give another one with "
                    "chat_template_path.",
                    "manual",
                ),
            ),
        )
