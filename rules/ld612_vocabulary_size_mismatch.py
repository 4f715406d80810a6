"""LD612: the number of embeddings in the checkpoint differs from the config's vocab_size."""

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
from lora_doctor.static.folder.vocabulary import vocabulary_mismatches


class VocabularySizeMismatch(Rule):
    """The checkpoint has another number of token embeddings than `vocab_size` in its `config.json`.

    ## What happens
    `from_pretrained` refuses the checkpoint: `size mismatch for model.embed_tokens.weight`, or from
    transformers 5 on `You set ignore_mismatched_sizes to False`. With `ignore_mismatched_sizes` it
    loads, and the embeddings are random.

    ## Why
    The embeddings were resized for new tokens and weights and config were saved at different times,
    or `vocab_size` was edited, or one of the two files is from another model. If only the head
    differs, the embeddings were resized with the wrong `tie_word_embeddings`.

    Models whose class computes with `vocab_size`, and configs with several vocabularies, are not
    judged.

    ## Versions
    All.

    ## Fix
    The config that belongs to the weights. `vocab_size` describes how many rows there are; it
    cannot be chosen.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model#transformers.PreTrainedModel.resize_token_embeddings
    """

    code = "LD612"
    name = "vocabulary-size-mismatch"
    summary = "The number of embeddings in the checkpoint differs from the config's vocab_size."
    depth = "static"
    symptoms = (
        Symptom(r"\b(?:\w*embed\w*|wte|lm_head|shared)\.weight\s*\|\s*MISMATCH", "transformers 5"),
        Symptom(r"size mismatch for (?!base_model\.model\.)\S*(embed|wte|lm_head|shared)"),
        Symptom(r"Trying to set a tensor of shape .* in \"weight\" .* this looks? incorrect"),
        Symptom(r"size mismatch\W+torch\.Size\(\[\d{5,6}, \d+\]\)", weight=-2),
        Symptom(r"state_dict for Embedding:\s+size mismatch for weight", "transformers 4.5x"),
        Symptom(
            r"state_dict for Linear:\s+size mismatch for weight: copying a param with shape "
            r"torch\.Size\(\[\d{5,6}, \d+\]\)",
            "transformers 4.5x",
        ),
        Symptom(
            r"You set `ignore_mismatched_sizes` to `False`, thus raising an error",
            "transformers 5",
            context=r"\b(?:\w*embed\w*|wte|lm_head|shared)\.weight\s*\|\s*MISMATCH",
            unless=r"layers\.\{?\d[^|]{0,80}\|\s*MISMATCH",
        ),
    )
    told_as = ("vocab_size of the config differs from the number of embeddings in the checkpoint.",)
    examples = (
        Example(
            "broken",
            "tests/folders/vocabulary_mismatch",
            depth="static",
            why="the config was saved before the embeddings were resized",
        ),
        Example("healthy", "tests/folders/vocabulary_padded", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        found = vocabulary_mismatches(static.config, static.weights.require())
        if not found:
            return
        first = found[0]
        rows = sorted({item.shape[0] for item in found})
        fix = (
            f"Write {first.key}: {rows[0]} into config.json of a copy of the folder, if the "
            "weights are the right ones; otherwise use the weights that belong to this config."
            if len(rows) == 1
            else "Use a config and weights that were saved together."
        )
        yield self.finding(
            "error",
            f"{first.tensor} has {first.shape[0]:,} rows and {first.key} is "
            f"{first.vocab_size:,}: from_pretrained will refuse the checkpoint.",
            location=Location("file", "config.json"),
            evidence=(
                Measurement(first.key, first.vocab_size, static.where("config.json")),
                *(
                    Measurement(item.tensor, str(list(item.shape)), f"header of {item.file}")
                    for item in found
                ),
            ),
            proof=Proof("read", "from the header of the weights and config.json"),
            fixes=(Fix(fix, "manual"),),
        )
