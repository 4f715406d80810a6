"""LD642: the script adds tokens, and nothing trains their embeddings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

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
    require_lora,
)
from lora_doctor.static.folder.token_ids import ids_of_new

if TYPE_CHECKING:
    from lora_doctor.rule_api import AddedTokens, Recipe


class NewTokensNotTrained(Rule):
    """The script adds tokens and resizes the embeddings, and the recipe trains neither embeddings
    nor head.

    ## What happens
    Training runs. The rows of the new tokens stay as `resize_token_embeddings` initialized them,
    at random or at the mean of the others: all new tokens look alike to the model, and it has no
    way to prefer one of them in its output. "The model never generates my new tokens".

    ## Why
    `get_peft_model` freezes everything but the adapters, the new rows included.

    ## Versions
    All versions of PEFT.

    ## Fix
    By hand: `trainable_token_indices` with the ids of the new tokens (PEFT 0.15 and later), which
    trains and saves these rows only, or the embeddings and the head in `modules_to_save`.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/troubleshooting#extending-the-vocabulary
    """

    code = "LD642"
    name = "new-tokens-not-trained"
    summary = "The script adds tokens, and nothing trains their embeddings."
    depth = "meta"
    descriptions = (
        Symptom(
            r"\b(?:new|added|special) tokens?\b.{0,60}\b(?:never|not) (?:be )?(?:generat|learn)"
        ),
    )
    told_as = ("The model does not learn the new tokens, it never generates them.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/tokens_not_trained.py",
            requires={"transformers": ">=4.41"},
            depth="meta",
            why="the embeddings of both tokens stay frozen",
        ),
        Example(
            "healthy",
            "tests/scripts/tokens_trained.py",
            requires={"transformers": ">=4.41"},
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        added = [one for one in added_tokens(case.program) if one.resized and not one.padding]
        if not added:
            return
        require_lora(case.recipe)
        if any("requires_grad" in unit.text for unit in case.program.program.units):
            raise EvidenceError("the script sets requires_grad itself")
        embeddings = case.structure.input_embeddings
        if embeddings is None or _is_trained(embeddings, case.recipe):
            return
        first = added[0]
        tokens = _new(added, case)
        if not tokens:
            return
        yield self.finding(
            "warning",
            f"The script adds {quoted(tokens, 4)} and resizes the embeddings, but {embeddings} is "
            "frozen: the rows of the new tokens stay as they were initialized.",
            location=Location("file", first.place.file, first.place.line),
            evidence=(
                Measurement("tokens added", tokens, first.code),
                Measurement("embeddings resized", str(first.resized), "the script"),
                Measurement("embeddings", embeddings, "not in target_modules, modules_to_save or "
                                                      "trainable_token_indices"),
            ),
            proof=Proof("read", "the script, and the recipe against the class's embeddings"),
            fixes=(
                Fix(
                    "Train the new rows: trainable_token_indices=tokenizer.convert_tokens_to_ids("
                    f"{tokens[:3]}{'…' if len(tokens) > 3 else ''}), or the embeddings and the "
                    "head in modules_to_save.",
                    "manual",
                ),
            ),
        )  # fmt: skip


def _new(added: list[AddedTokens], case: Case) -> list[str]:
    """Those that the tokenizer does not have yet, without those that are only for padding.

    Raises:
        EvidenceError: it is not known what the tokenizer has.
    """
    if not all(one.of_the_model for one in added):
        raise EvidenceError("the tokenizer is not loaded from where the model is")
    wanted = [token for one in added for token in one.tokens if token not in one.for_padding]
    return list(ids_of_new(case.static, wanted))


def _is_trained(path: str, recipe: Recipe) -> bool:
    """Whether a key of the recipe names the embeddings, or the tokens."""
    if recipe.get("trainable_token_indices"):
        return True
    return any(_names(recipe.get(key), path) for key in ("modules_to_save", "target_modules"))


def _names(value: Any, path: str) -> bool:
    if isinstance(value, str):
        try:
            return value == path or re.fullmatch(value, path) is not None
        except re.error:
            return False
    entries = value if isinstance(value, (list, tuple, set, Mapping)) else ()
    return any(path == entry or path.endswith(f".{entry}") for entry in entries)
