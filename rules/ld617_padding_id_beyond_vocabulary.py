"""LD617: the config's pad_token_id has no row in the embedding matrix."""

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
from lora_doctor.static.folder.special_ids import padding_ids_beyond


class PaddingIdBeyondVocabulary(Rule):
    """`pad_token_id` in `config.json` is not smaller than `vocab_size`, and the class passes it to
    `nn.Embedding`.

    ## What happens
    The model cannot be constructed: `AssertionError: Padding_idx must be within num_embeddings`.

    ## Why
    A padding token was added to the tokenizer and its id written into the config, and the
    embeddings were not resized, or the config was saved before they were.

    An id of -1, which older configs use for "none", refers to the last row and works.
    `eos_token_id` and `bos_token_id` are used in generation only and not checked.

    ## Versions
    All. Read from the source of the installed class.

    ## Fix
    An id that the model has an embedding for. Padding is masked in loss and attention, so it does
    not matter which one, as long as it does not occur in the data.

    ## Links
    https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html
    """

    code = "LD617"
    name = "padding-id-beyond-vocabulary"
    summary = "The config's pad_token_id has no embedding; the model cannot be constructed."
    depth = "static"
    symptoms = (
        Symptom(r"Padding_idx must be within num_embeddings"),
        Symptom(r"pad_token_id must be `None` or an integer within the vocabulary"),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/pad_token_id_beyond_vocabulary",
            depth="static",
            why="pad_token_id is vocab_size",
        ),
        Example("healthy", "tests/folders/vocabulary_padded", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        for found in padding_ids_beyond(static.config):
            yield self.finding(
                "error",
                f"{found.key} is {found.id} and {found.vocabulary_key} is {found.vocab_size}: "
                "the model cannot be constructed.",
                location=Location("file", "config.json"),
                evidence=(
                    Measurement(found.key, found.id, static.where("config.json")),
                    Measurement(
                        found.vocabulary_key, found.vocab_size, static.where("config.json")
                    ),
                    Measurement(
                        "padding_idx",
                        "pad_token_id",
                        f"the installed modeling file of {found.model_type}",
                    ),
                ),
                proof=Proof(
                    "measured", "read from config.json and the source of the installed class"
                ),
                fixes=(
                    Fix(
                        f"Write {found.key}: null, or the id of a token that the model has, into "
                        "config.json of a copy of the folder; the same in generation_config.json.",
                        "manual",
                    ),
                ),
            )
