"""LD609: embeddings that were resized for new tokens are not in the adapter folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._round_trip import round_trip, source

if TYPE_CHECKING:
    from lora_doctor.rule_api import Verification, Vocabulary


class ResizedEmbeddingsNotSaved(Rule):
    """The embeddings were resized after the checkpoint was loaded, and PEFT does not save them.

    ## What happens
    Tokens are added, `resize_token_embeddings` is called, training runs and saves. The adapter
    folder loads onto the checkpoint silently, with the old vocabulary: the new tokens have no
    embeddings, or get new random ones when the base model is resized again.

    ## Why
    An adapter folder holds the adapters and what `modules_to_save` names. Newer releases of PEFT
    compare the vocabulary size with that of the base config and then save resized embeddings
    automatically, but only if they find that config: not offline, and not for a base model that has
    moved.

    ## Versions
    Resized embeddings are saved by PEFT 0.9 and later, where it finds the base config.

    ## Fix
    Name the embeddings in `modules_to_save`, or call `save_pretrained` with
    `save_embedding_layers=True`. Either way the base model has to be resized before the adapter is
    loaded.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting
    """

    code = "LD609"
    name = "resized-embeddings-not-saved"
    summary = "Embeddings that were resized for new tokens are not in the adapter folder."
    depth = "tiny"
    symptoms = (Symptom(r"will assume that the vocabulary was not modified", aside=True),)
    descriptions = (
        Symptom(
            r"\bresiz\w+ .{0,60}\b(?:not saved|lost|missing)\b|\b(?:new|added) tokens?"
            r"\b.{0,60}\b(?:not saved|lost|random)\b"
        ),
        Symptom(
            r"\A(?=.*\b(?:new|add\w*|special|extra)\b.{0,12}\btokens?\b)(?=.*\bembeddings?\b)("
            r"?=.*\bnot\b.{0,15}\b(?:saved|in the (?:adapter|checkpoint))).+"
        ),
    )
    told_as = ("The embeddings of the added tokens are lost after loading the adapter.",)
    examples = (
        Example(
            "broken",
            "tests.models:llama_with_new_tokens",
            {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
            requires={"peft": "<0.9"},
            loaded=True,
            why="this PEFT does not look at the vocabulary",
        ),
        Example(
            "healthy",
            "tests.models:llama_with_new_tokens",
            {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
            requires={"peft": ">=0.9"},
            loaded=True,
            why="this PEFT saves them unasked",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen, saving = round_trip(case)
        if saving.vocabulary is not None and not saving.vocabulary.saved:
            yield self._vocabulary(seen, saving.vocabulary)

    def _vocabulary(self, seen: Verification, found: Vocabulary) -> Finding:
        files = source(seen, "saved, loaded onto the checkpoint")
        return self.finding(
            "error",
            f"The embeddings were resized from {found.checkpoint_rows} to {found.rows} rows, "
            "and the adapter folder will not contain them: the new tokens are lost.",
            location=Location("module", found.module),
            evidence=(
                Measurement("rows of the embeddings", found.rows, f"{seen.model_class}, in memory"),
                Measurement("rows in the checkpoint", found.checkpoint_rows, found.checkpoint),
                Measurement("embeddings in the adapter folder", found.saved, files),
                Measurement("loading it onto the checkpoint", found.outcome, files),
            ),
            proof=Proof("executed", "the adapter was saved and loaded onto the checkpoint"),
            fixes=(
                Fix("Train and save the embeddings with the adapters (takes their memory).",
                    "unsafe", (Edit("modules_to_save", [found.module]),)),
                Fix("Or model.save_pretrained(DIR, save_embedding_layers=True). Either way resize "
                    "the base model before the adapter is loaded.", "manual"),
            ),
        )  # fmt: skip
