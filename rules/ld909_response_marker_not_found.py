"""LD909: the marker that answers begin after does not occur in the rows."""

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
    """The loss is to be taken on what follows a marker (`response_template`, Unsloth's
    `response_part`), and the marker's tokens do not stand in the row.

    ## What happens
    Everything of such a row is masked: a loss of 0 or NaN, "All labels in your dataset are -100",
    or a warning for each row and nothing learned from it.

    ## Why
    A marker of another template; or the right text whose tokens are others inside a text than
    alone: a line break or a space before it becomes part of its first token.

    ## Versions
    All. TRL's `DataCollatorForCompletionOnlyLM` (until 0.19), Unsloth's `train_on_responses_only`.

    ## Fix
    The text that the template really writes before an answer, which is shown; as token ids where it
    is split otherwise.

    ## Links
    https://github.com/huggingface/trl/issues/588
    """

    code = "LD909"
    name = "response-marker-not-found"
    summary = "The marker that answers begin after does not occur in the rows."
    depth = "meta"
    symptoms = (
        Symptom(r"Could not find response key"),
        Symptom(r"All labels in your dataset are -100"),
        Symptom(r"Most labels in your dataset are -100"),
    )
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
            f" In {split.count:,} of them the text has it, and its tokens are others there."
            if split
            else ""
        )
        every = rows.count == found.judged
        marker = found.tokenizer.generation_prompt.strip()
        fix = (
            Fix(
                f"What this template writes before an answer: {marker!r}.",
                "unsafe",
                (Edit("response_template", marker),),
            )
            if marker and marker != found.response_marker and not split
            else Fix("Give the marker as the tokens that it has inside a row.", "manual")
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
                    Measurement("of these with its text", split.count, "before tokenizing"),
                    Measurement(
                        "before an answer stands",
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
