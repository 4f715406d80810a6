"""LD630: token ids to be trained for which the model has no embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Recipe,
    Rule,
    Symptom,
    quoted,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import ModuleGroup, Structure

_KEYS = ("trainable_token_indices", "token_indices")


class TrainedTokensBeyondVocabulary(Rule):
    """`trainable_token_indices` names token ids without a row in the model's embedding matrix.

    ## What happens
    `get_peft_model` raises `IndexError: index out of range in self`: it copies the rows to be
    trained.

    ## Why
    The tokens were added to the tokenizer, but the embeddings have not been resized before
    `get_peft_model`; or the ids are those of another tokenizer.

    ## Versions
    `trainable_token_indices` exists from PEFT 0.15 on.

    ## Fix
    `model.resize_token_embeddings(len(tokenizer))` before `get_peft_model`, or the ids of this
    tokenizer.

    ## Links
    https://huggingface.co/docs/peft/package_reference/trainable_tokens
    """

    code = "LD630"
    name = "trained-tokens-beyond-vocabulary"
    summary = "trainable_token_indices names tokens for which the model has no embedding."
    depth = "meta"
    symptoms = (
        Symptom(
            r"index \d+ is out of bounds for dimension 0 with size \d+",
            raised_in=r"peft[\\/]tuners[\\/]trainable_tokens",
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj"], "trainable_token_indices": [5, 32000]},
            {"peft": ">=0.15"},
            why="the embeddings have 32,000 rows: a token was added, and no row",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj"], "trainable_token_indices": [5, 31999]},
            {"peft": ">=0.15"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        key = next((key for key in _KEYS if case.recipe.get(key)), None)
        if key is None:
            return
        structure = case.structure
        beyond = {
            group: tokens
            for group, ids in _asked(case.recipe, key, structure)
            if (tokens := [token for token in ids if token >= group.shape[0]])
        }
        for group, tokens in beyond.items():
            yield self._finding(key, group, tokens)

    def _finding(self, key: str, group: ModuleGroup, tokens: list[int]) -> Finding:
        return self.finding(
            "error",
            f"{key} names token ids ({quoted(map(str, tokens), 6)}) for which {group.pattern} "
            f"({group.shape[0]} rows) has none: get_peft_model raises IndexError.",
            location=Location("recipe", key),
            evidence=(
                Measurement("token ids without a row", ", ".join(map(str, tokens[:12])), "recipe"),
                Measurement(f"rows of {group.pattern}", group.shape[0], "the class at full size"),
            ),
            proof=Proof("measured", "compared with the shape of the embeddings"),
            fixes=(
                Fix(
                    "Call model.resize_token_embeddings(len(tokenizer)) before get_peft_model, "
                    "or use the ids of this model's tokenizer.",
                    "manual",
                ),
            ),
            explains=("attaches", "forward"),
        )


def _asked(
    recipe: Recipe, key: str, structure: Structure
) -> Iterator[tuple[ModuleGroup, list[int]]]:
    """Each embedding whose tokens are trained, and which.

    Raises:
        EvidenceError: the rows of the embeddings are not known.
    """
    given = recipe.get(key)
    by_name = given if isinstance(given, Mapping) else {structure.input_embeddings or "": given}
    for name, ids in by_name.items():
        groups = [
            group
            for group in structure.groups
            if group.shape and f".{group.pattern}".endswith(f".{name}") and name
        ]
        if not groups:
            raise EvidenceError(f"no embeddings {name!r} whose rows could be counted")
        yield groups[0], [token for token in ids or () if type(token) is int]
