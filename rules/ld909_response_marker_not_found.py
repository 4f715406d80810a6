"""LD909: the response marker does not occur in the rows."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Rule,
    Symptom,
)
from lora_doctor.rules._supervision import about, looked_at, of_texts, portion, proof, which


class ResponseMarkerNotFound(Rule):
    """The loss should be computed on what follows a marker (`response_template`, Unsloth's
    `response_part`), but the marker's tokens do not occur in the row.

    ## What happens
    All tokens of such a row are masked: a loss of 0 or NaN, "All labels in your dataset are -100",
    or a warning for each row, from which nothing is learned.

    ## Why
    The marker belongs to another template. Or the text is right, but tokenized differently inside a
    row than alone: a preceding newline or space becomes part of its first token.

    ## Versions
    All. TRL's `DataCollatorForCompletionOnlyLM` (until 0.19), Unsloth's `train_on_responses_only`.

    ## Fix
    The text that the template really writes before an answer, which the finding shows; as token ids
    if it is tokenized differently.

    ## Links
    https://github.com/huggingface/trl/issues/588
    """

    code = "LD909"
    name = "response-marker-not-found"
    summary = "The response marker does not occur in the rows."
    depth = "meta"
    symptoms = (
        Symptom(r"Could not find response key"),
        Symptom(r"All labels in your dataset are -100"),
        Symptom(r"Most labels in your dataset are -100"),
    )
    told_as = ("The response template is not found in the rows, all their labels are ignored.",)
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "response_template": "<start_of_turn>model"},
            data="tests/data/rows/chats.jsonl",
            why="Gemma's marker, and the template is ChatML",
        ),
        Example(
            "broken",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "response_template": " Response"},
            data="tests/data/rows/chats.jsonl",
            why="no row has such a text",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model",
            {"target_modules": ["q_proj"], "response_template": "<|im_start|>assistant"},
            data="tests/data/rows/chats.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = of_texts(case)
        rows = found.marker_missing
        if not rows:
            return
        split = found.marker_only_as_text
        why = (
            f" In {split.count:,} of them the text contains it, but is tokenized differently."
            if split
            else ""
        )
        every = rows.count == found.judged
        marker = found.tokenizer.generation_prompt.strip()
        fix = (
            Fix(
                f"Set response_template to what this template writes before an answer: {marker!r}.",
                "unsafe",
                (Edit("response_template", marker),),
            )
            if marker and marker != found.response_marker and not split
            else Fix("Give the marker as token ids, as it is tokenized inside a row.", "manual")
        )
        yield about(
            self.finding(
                "error" if every else "warning",
                f"The response marker {found.response_marker!r} does not occur in "
                f"{portion(rows, found)}: nothing is supervised there.{why}",
                location=Location("recipe", "response_template"),
                evidence=(
                    looked_at(found),
                    Measurement("response marker", found.response_marker, "the recipe"),
                    Measurement("rows without its tokens", rows.count, "token by token"),
                    Measurement("of these, rows with its text", split.count, "before tokenizing"),
                    Measurement(
                        "text before an answer",
                        found.tokenizer.generation_prompt,
                        "the template's generation prompt",
                    ),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(fix,),
            ),
            rows,
        )
