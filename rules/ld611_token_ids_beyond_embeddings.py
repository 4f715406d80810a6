"""LD611: the tokenizer produces ids for which the model has no embedding."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.static.folder.token_ids import TokenId, tokens_beyond
from lora_doctor.static.folder.vocabulary import token_rows, vocabulary_mismatches

_SHOWN = 8


class TokenIdsBeyondEmbeddings(Rule):
    """The folder's tokenizer has more tokens than the model has embeddings, and produces ids
    without a row in the embedding matrix.

    ## What happens
    The first batch that contains such a token ends in `IndexError: index out of range in self`, on
    a GPU in `CUDA error: device-side assert triggered`, after which every CUDA call of the process
    fails. If it is the padding token, that is the first batch with rows of different lengths.

    ## Why
    Tokens were added to the tokenizer (`[PAD]`, `<tool>`), which was saved, and the embeddings were
    not resized, or this is the checkpoint from before resizing. Or tokenizer and weights come from
    different models. The reverse, an embedding matrix larger than the tokenizer, is normal: it is
    padded to a multiple.

    Placeholders of images, audio and video are not counted. They are replaced before they reach the
    embeddings, and text models are often published with the tokenizer of their multimodal sibling.

    ## Versions
    All.

    ## Fix
    `model.resize_token_embeddings(len(tokenizer))` before `get_peft_model`, and train and save the
    new rows: `trainable_token_indices`, or the embeddings in `modules_to_save`. As padding token,
    use one that already has an embedding; that needs neither.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting#extending-the-vocabulary
    """

    code = "LD611"
    name = "token-ids-beyond-embeddings"
    summary = "The tokenizer produces ids for which the model has no embedding."
    depth = "static"
    symptoms = (
        Symptom(
            r"IndexError: index out of range in self",
            unless=r"self\.(?:wpe|embed_positions|position_embeddings?|pos_embed\w*)\(",
        ),
        Symptom(r"Assertion `?srcIndex < srcSelectDimSize"),
        Symptom(r"vectorized.gather.kernel.{0,40}index out of bounds"),
        Symptom(r"device-side assert triggered", context=r"in embedding\b|torch\.embedding\("),
    )
    told_as = ("Token ids are larger than the embeddings, a device-side assert is triggered.",)
    examples = (
        Example(
            "broken",
            "tests/folders/pad_token_beyond_vocabulary",
            depth="static",
            why="[PAD] was added to the tokenizer, and the model was not resized",
        ),
        Example(
            "healthy",
            "tests/folders/vocabulary_padded",
            depth="static",
            why="a vocabulary that is padded to a multiple of 64",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        weights = static.weights.value
        if weights is not None and vocabulary_mismatches(static.config, weights):
            return  # such a checkpoint is not loaded: LD612
        rows = token_rows(static.config, weights)
        if rows is None:
            raise EvidenceError(f"{static.source}: the number of its token embeddings is unknown")
        beyond = tokens_beyond(static, rows.rows)
        if not beyond:
            return
        reached = [token for token in beyond if token.role or not token.added]
        named = quoted([token.token for token in reached or beyond], 4)
        yield self.finding(
            "error" if reached else "warning",
            f"The tokenizer has ids from {beyond[0].id} on, but the model has only "
            f"{rows.rows:,} token embeddings: "
            + (
                f"{named} will raise IndexError."
                if reached
                else f"data that contains {named} will raise IndexError."
            ),
            location=Location("file", (reached or beyond)[0].file),
            evidence=(
                Measurement("token embeddings", rows.rows, rows.where),
                Measurement("highest id", beyond[-1].id, beyond[-1].file),
                Measurement("tokens without an embedding", _table(beyond), "token: id"),
            ),
            proof=Proof("read", "from the tokenizer's files and the rows of the embeddings"),
            fixes=tuple(_fixes(beyond)),
        )


def _table(tokens: tuple[TokenId, ...]) -> dict[str, int]:
    return {token.token: token.id for token in tokens[:_SHOWN]}


def _fixes(tokens: tuple[TokenId, ...]) -> Iterator[Fix]:
    if all(token.role == "pad_token" for token in tokens):
        yield Fix(
            "Use a padding token that the model has an embedding for: tokenizer.pad_token = "
            "tokenizer.unk_token, or another one that does not occur in the data.",
            "manual",
        )
    yield Fix(
        "Call model.resize_token_embeddings(len(tokenizer)) before get_peft_model, and train and "
        f"save the new rows: trainable_token_indices={[token.id for token in tokens[:_SHOWN]]}"
        f"{' and so on' if len(tokens) > _SHOWN else ''}, or the embeddings in modules_to_save.",
        "manual",
    )
    if any(not token.added for token in tokens):
        yield Fix(
            "Or use the tokenizer that belongs to these weights: this vocabulary belongs to "
            "another model.",
            "manual",
        )
