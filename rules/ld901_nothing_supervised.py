"""LD901: rows of the training data have no supervised token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom
from lora_doctor.rules._supervision import about, looked_at, loss_on, of_data, portion, proof, which

if TYPE_CHECKING:
    from lora_doctor.rule_api import Supervision

#: What fails where every label is ignored: the loss is none, and no adapter moves.
EXPLAINED = ("loss-finite", "gradients", "adapters-move", "loss-falls")


class NothingSupervised(Rule):
    """Every label of a row is -100: the row does not contribute to the loss.

    ## What happens
    If this holds for all rows, the loss is 0.0 or NaN, every gradient is 0, and the run "succeeds".
    If it holds for some, a batch of only such rows has a loss of NaN, and so has the logged
    average.

    ## Why
    All labels were masked: conversations without an answer, a mask made for another format, a
    dataset that was already masked. Cross entropy divides by the number of unmasked labels, which
    is 0.

    Rows whose labels are truncated are LD902, templates without generation marks LD908, response
    markers that do not occur LD909.

    ## Versions
    All.

    ## Fix
    Use rows with an answer, or a mask that keeps the answer. Only you know what the rows should
    teach.

    ## Links
    https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    code = "LD901"
    name = "nothing-supervised"
    summary = "Rows of the training data have no supervised token."
    depth = "meta"
    symptoms = (
        Symptom(r"All labels in your dataset are -100"),
        Symptom(r"ZeroDivisionError:[^:]{0,80}\blabels\b"),
        Symptom(r"at least one example has no assistant tokens"),
        Symptom(r"Most labels in your dataset are -100"),
    )
    descriptions = (
        Symptom(
            r"\b(?:labels?|tokens?)\b.{0,30}\b(?:all|only|entirely|completely|mostly)"
            r"\b.{0,10}(?:-100|\bmasked\b)"
        ),
        Symptom(r"\b(?:all|most|every)\b.{0,10}\b(?:labels?|tokens?)\b.{0,30}(?:-100|\bmasked\b)"),
    )
    told_as = (
        "All labels are -100, nothing is trained and the loss is zero or NaN.",
        "The loss is always 0 from the first step on.",
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {
                "target_modules": ["q_proj"],
                "assistant_only_loss": True,
                "chat_template_path": "tests/data/templates/chatml_marked.jinja",
            },
            requires={"transformers": ">=4.42"},
            data="tests/data/rows/no_answers.jsonl",
            depth="meta",
            why="conversations in which nobody answers",
        ),
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"]},
            data="tests/data/rows/masked.jsonl",
            depth="meta",
            why="rows that were tokenized before, with labels of -100 only",
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
        rows = found.nothing
        if not rows or claimed_elsewhere(found):
            return
        every = rows.count == found.judged
        consequence = (
            "the loss is 0 or NaN and nothing is learned"
            if every
            else "a batch of only such rows has a loss of NaN"
        )
        yield about(
            self.finding(
                "error" if every else "warning",
                f"In {portion(rows, found)} no token is supervised: {consequence}.",
                location=of_data(case),
                evidence=(
                    looked_at(found),
                    loss_on(found),
                    Measurement("supervised tokens", found.supervised_tokens, "of all rows"),
                    Measurement("tokens", found.tokens, "of all rows"),
                    which(rows),
                ),
                proof=proof(found),
                explains=EXPLAINED if every else (),
                fixes=(
                    Fix(
                        "Remove these rows, or give them an answer that the loss is computed on.",
                        "manual",
                    ),
                ),
            ),
            rows,
        )


def claimed_elsewhere(found: Supervision) -> bool:
    """Whether another rule names the cause of all these rows."""
    if found.loss_on == "assistant" and not found.tokenizer.has_generation_marks:
        return True
    return bool(found.response_marker) and found.nothing.count <= found.marker_missing.count
