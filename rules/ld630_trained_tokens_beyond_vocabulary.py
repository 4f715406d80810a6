"""LD630: token ids whose embeddings are to be trained, and that the model has no row for."""

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
    """`trainable_token_indices` names tokens that the embeddings of the model have no row for.

    ## What happens
    `get_peft_model` ends in `IndexError: index out of range in self`: it copies the rows that it
    is to train.

    ## Why
    The tokens were added to the tokenizer, and the embeddings have not been resized when PEFT is
    put on; or the ids are those of another tokenizer.

    ## Versions
    `trainable_token_indices` exists from PEFT 0.15 on.

    ## Fix
    `model.resize_token_embeddings(len(tokenizer))` before `get_peft_model`, or the ids that this
    tokenizer gives out.

    ## Links
    https://huggingface.co/docs/peft/package_reference/trainable_tokens
    """

    code = "LD630"
    name = "trained-tokens-beyond-vocabulary"
    summary = "trainable_token_indices names tokens that the model has no embedding for."
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
            f"{key} {quoted(map(str, tokens), 6)}: {group.pattern} has {group.shape[0]:,} rows, "
            "and PEFT ends in an index error.",
            location=Location("recipe", key),
            evidence=(
                Measurement("tokens without a row", tokens[:12], "recipe"),
                Measurement(f"rows of {group.pattern}", group.shape[0], "the class at full size"),
            ),
            proof=Proof("measured", "compared with the shape of the embeddings"),
            fixes=(
                Fix(
                    "Call model.resize_token_embeddings(len(tokenizer)) before get_peft_model, or "
                    "write the ids that this model's tokenizer gives out.",
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
