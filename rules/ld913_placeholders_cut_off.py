"""LD913: the length limit cuts tokens that stand for parts of an image or a sound."""

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


class PlaceholdersCutOff(Rule):
    """A row has fewer tokens that stand for an image (or a sound) than the image has features.

    ## What happens
    The forward raises: "Image features and image tokens do not match". Only in the batch that has
    such a row, which may be hours later.

    ## Why
    Images are many tokens, and truncation counts tokens.

    ## Versions
    All models that put features in the place of tokens.

    ## Fix
    A limit that the longest row fits into, no limit, or images of fewer pixels. It takes memory.

    ## Links
    https://github.com/huggingface/trl/issues/4289
    """

    code = "LD913"
    name = "placeholders-cut-off"
    summary = "The length limit cuts tokens that stand for parts of an image or a sound."
    depth = "meta"
    symptoms = (
        Symptom(r"[Ii]mage features and image tokens do not match"),
        Symptom(r"Image tokens and image features.*mismatch"),
        Symptom(r"Mismatch in `\w+` token count between text and"),
        Symptom(r"(?i)\b(?:video|audio) features and (?:video|audio) tokens do not match"),
        Symptom(r"too short and causes image placeholder tokens in `input_ids` to be truncated"),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/chat_model_with_images",
            {"target_modules": ["q_proj"], "max_length": 30},
            data="tests/data/rows/images.jsonl",
        ),
        Example(
            "healthy",
            "tests/folders/chat_model_with_images",
            {"target_modules": ["q_proj"], "max_length": 128},
            data="tests/data/rows/images.jsonl",
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = of_texts(case)
        rows = found.placeholders_cut
        if not rows:
            return
        length = -(-found.longest // 64) * 64
        yield about(
            self.finding(
                "error",
                f"In {portion(rows, found)} there are fewer tokens for an image or a sound than "
                f"features: "
                "the forward would refuse the batch.",
                location=Location("recipe", "max_length"),
                evidence=(
                    looked_at(found),
                    Measurement("max_length", found.max_length, "the recipe"),
                    Measurement("longest row", found.longest, f"tokens of row {found.longest_row}"),
                    which(rows),
                ),
                proof=proof(found),
                fixes=(
                    Fix(
                        f"Room for the longest row that was looked at: max_length {length}.",
                        "unsafe",
                        (Edit("max_length", length),),
                    ),
                ),
            ),
            rows,
        )
