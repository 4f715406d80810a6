"""LD617: pad_token_id of the config has no row in the embedding that it is a padding index of."""

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
    """`pad_token_id` in `config.json` is not smaller than `vocab_size`, and the class hands it to
    `nn.Embedding`.

    ## What happens
    The model cannot be made at all: `AssertionError: Padding_idx must be within num_embeddings`.

    ## Why
    A padding token was added to the tokenizer and its id written into the config, and the
    embeddings were not resized, or the config was saved before they were.

    An id of -1, which older configs have for "none", is read as the last row and trains. Ids of
    `eos_token_id` and `bos_token_id` are used in generation only, and are not looked at.

    ## Versions
    All. Told from the source of the installed class.

    ## Fix
    An id that the model has an embedding for. Padding is masked in loss and attention, so that
    which one it is changes nothing, as long as the data does not need it.

    ## Links
    https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html
    """

    code = "LD617"
    name = "padding-id-beyond-vocabulary"
    summary = "The config's pad_token_id has no embedding; the model cannot be made."
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
                f"{found.key} is {found.id} and {found.vocabulary_key} is {found.vocab_size}: the "
                "model cannot be made.",
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
                proof=Proof("measured", "config.json, and the source of the installed class"),
                fixes=(
                    Fix(
                        f"Write {found.key}: null, or the id of a token that the model has, into "
                        "config.json of a copy of the folder; the same in generation_config.json.",
                        "manual",
                    ),
                ),
            )
