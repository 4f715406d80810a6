"""LD913: the length limit truncates image or audio placeholder tokens."""

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

#: What torch says where features do not fit the placeholders, or positions the tokens.
_SHAPES = (
    r"shape mismatch: value tensor of shape \[\d+, \d+\] cannot be broadcast to indexing result of "
    r"shape \[\d+, \d+\]"
)
_MODELS = r"transformers[\\/]models[\\/]|transformers_modules"


class PlaceholdersCutOff(Rule):
    """A row has fewer placeholder tokens for an image (or an audio clip) than the image has
    features.

    ## What happens
    The forward raises: "Image features and image tokens do not match", in older releases and for
    the positions of Qwen-VL `shape mismatch: value tensor of shape [3, 2253] cannot be broadcast to
    indexing result of shape [3, 2048]`. This happens only in the batch with such a row, which may
    be hours into training.

    ## Why
    An image takes many placeholder tokens, and truncation cuts them like any other.

    ## Versions
    All models that replace placeholder tokens by features.

    ## Fix
    A limit that fits the longest row, no limit, or smaller images. A higher limit takes memory.

    ## Links
    https://github.com/huggingface/trl/issues/4289
    """

    code = "LD913"
    name = "placeholders-cut-off"
    summary = "The length limit truncates image or audio placeholder tokens."
    depth = "meta"
    symptoms = (
        Symptom(r"[Ii]mage features and image tokens do not match"),
        Symptom(r"Image tokens and image features.*mismatch"),
        Symptom(r"Mismatch in `\w+` token count between text and"),
        Symptom(r"(?i)\b(?:videos?|audio) features and (?:video|audio|image) tokens do not match"),
        Symptom(
            r"input provided to the model are wrong\. The number of (?:image|audio|video) tokens is"
            r"|image_to_overwrite\.sum\(\)=\S+ != num_image_features"
            r"|image tokens in input_ids \(\d+\) different from num_images",
            "the LLaVA family before transformers 4.46, Qwen2-Audio",
        ),
        Symptom(r"has <image> tokens not divisible by patch_size", "SmolVLM, Idefics 3"),
        Symptom(r"[Pp]laceholder span length does not match|invalid or truncated token layout"),
        Symptom(r"truncation removed vision special/frame tokens", "ms-swift"),
        Symptom(_SHAPES, "transformers<4.46, Qwen-VL also later", raised_in=_MODELS),
        Symptom(_SHAPES, "transformers<4.46, Qwen-VL also later", alone=True),
        Symptom(
            _SHAPES,
            "Qwen-VL in code of other frameworks",
            context=r"\b(?:get_rope_index|(?:image|video)_(?:mask|embeds|features))\b",
        ),
        Symptom(
            r"unsupported operand type\(s\) for -: 'NoneType' and 'int'",
            "Idefics 3: the place where an image ends is cut off",
            raised_in=r"processing_idefics3\.py",
        ),
        Symptom(r"too short and causes image placeholder tokens in `input_ids` to be truncated"),
    )
    told_as = ("Image tokens are truncated, their number does not match the image features.",)
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
                f"{portion(rows, found)} have fewer image or audio placeholder tokens than "
                "features: the forward would raise.",
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
                        f"Make room for the longest row examined: max_length {length}.",
                        "unsafe",
                        (Edit("max_length", length),),
                    ),
                ),
            ),
            rows,
        )
