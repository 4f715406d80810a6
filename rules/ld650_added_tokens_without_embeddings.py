"""LD650: the script adds tokens and does not resize the embeddings, which have no row for them."""

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
    added_tokens,
    quoted,
)
from lora_doctor.static.folder.token_ids import ids_of_new
from lora_doctor.static.folder.vocabulary import token_rows


class AddedTokensWithoutEmbeddings(Rule):
    """The script adds tokens to the tokenizer, and the embeddings have no rows for them.

    ## What happens
    The first batch that contains such a token ends in `IndexError: index out of range in self`, on
    a GPU in `CUDA error: device-side assert triggered`. With a new padding token that is the first
    batch with rows of different lengths.

    ## Why
    `add_tokens` and `add_special_tokens` change the tokenizer only. Where the vocabulary is padded
    to a multiple, as that of many models is, the first new tokens fit without resizing; that is no
    finding.

    ## Versions
    All. A tokenizer that was saved with such tokens is LD611.

    ## Fix
    By hand: `model.resize_token_embeddings(len(tokenizer))` before `get_peft_model`, and train the
    new rows (LD642). As padding token use one that the tokenizer has.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting#extending-the-vocabulary
    """

    code = "LD650"
    name = "added-tokens-without-embeddings"
    summary = "The script adds tokens, and the embeddings have no rows for them."
    depth = "static"
    symptoms = (
        Symptom(
            r"IndexError: index out of range in self",
            unless=r"self\.(?:wpe|embed_positions|position_embeddings?|pos_embed\w*)\(",
            weight=-1,
        ),
    )
    told_as = ("Index out of range for the tokens that I added, the embeddings were not resized.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/tokens_without_rows.py",
            depth="static",
            why="the tenth token gets an id behind the last embedding",
        ),
        Example(
            "healthy",
            "tests/scripts/tokens_in_padding.py",
            depth="static",
            why="the vocabulary is padded, and nine new tokens fit",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        added = [one for one in added_tokens(case.program) if one.resized is None]
        if not added:
            return
        if not all(one.of_the_model for one in added):
            raise EvidenceError("the tokenizer is not loaded from where the model is")
        static = case.static
        rows = token_rows(static.config, static.weights.value)
        if rows is None:
            raise EvidenceError(f"{static.source}: the number of its token embeddings is unknown")
        ids = ids_of_new(static, [token for one in added for token in one.tokens])
        beyond = {token: number for token, number in ids.items() if number >= rows.rows}
        if not beyond:
            return
        for_padding = {token for one in added for token in one.for_padding}
        if for_padding.issuperset(beyond) and _may_not_pad(case):
            raise EvidenceError("batches of one row, and packed rows, need no padding token")
        first = added[0]
        yield self.finding(
            "error",
            f"The script adds {quoted(list(beyond), 4)} (id {min(beyond.values())}"
            f"{'' if len(beyond) == 1 else ' and on'}) and "
            f"does not resize the model, which has {rows.rows:,} token embeddings: a batch that "
            "contains one raises IndexError.",
            location=Location("file", first.place.file, first.place.line),
            evidence=(
                Measurement("tokens added", ids, first.code),
                Measurement("token embeddings", rows.rows, rows.where),
            ),
            proof=Proof("read", "the script, the tokenizer's files and the model's config"),
            fixes=(
                Fix(
                    "Call model.resize_token_embeddings(len(tokenizer)) before get_peft_model, and "
                    "train the new rows (trainable_token_indices); for padding, use a token that "
                    "the tokenizer already has.",
                    "manual",
                ),
            ),
        )


def _may_not_pad(case: Case) -> bool:
    """Whether rows may stand alone, or one behind another, in all batches of the run."""
    alone = case.recipe.get("per_device_train_batch_size") == 1
    return alone or case.recipe.get("packing") is True
