"""LD618: tokenizer_config.json was written by a newer transformers and cannot be read by the
installed one."""

from __future__ import annotations

import json
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
from lora_doctor.static.folder.tokenizer_settings import (
    adds_prefix_space,
    special_tokens_in_a_list,
    unknown_tokenizer_class,
)

_FILE = "tokenizer_config.json"


class TokenizerOfNewerTransformers(Rule):
    """`tokenizer_config.json` names a class or uses a format that the installed transformers does
    not know.

    ## What happens
    `AutoTokenizer.from_pretrained` raises `Tokenizer class TokenizersBackend does not exist or is
    not currently imported`, or `'list' object has no attribute 'keys'`. Without protobuf the second
    failure appears as `requires the protobuf library`, which is not the cause.

    ## Why
    transformers 5 saves what was `PreTrainedTokenizerFast` as `TokenizersBackend`, and
    `additional_special_tokens` as a list in `extra_special_tokens`, which transformers 4 expects to
    be a dictionary. The reverse works: transformers 5 reads both formats of 4.

    ## Versions
    Files of transformers 5 in transformers 4; the list fails from 4.47 on, older releases ignore
    it. Read from the source of the installed release.

    ## Fix
    In a copy of the folder, use the names of transformers 4, which 5 reads as well.
    `tokenizer.json` stays as it is. If it adds a space before the text, `add_prefix_space` has to
    be set, because transformers 4 follows that setting: otherwise the same text would silently give
    other tokens.

    ## Links
    https://github.com/huggingface/transformers/blob/main/MIGRATION_GUIDE_V5.md
    """

    code = "LD618"
    name = "tokenizer-of-newer-transformers"
    summary = "tokenizer_config.json was written by a newer transformers; this one cannot read it."
    depth = "static"
    symptoms = (
        Symptom(r"Tokenizer class \w+ does not exist or is not currently imported", "<5"),
        Symptom(r"_set_model_specific_special_tokens", "<5"),
        Symptom(r"AddedToken\(\) got multiple values for keyword argument"),
    )
    told_as = ("A tokenizer saved with transformers 5 does not load in transformers 4.",)
    examples = (
        Example(
            "broken",
            "tests/folders/tokenizer_of_transformers_5",
            requires={"transformers": "<5"},
            depth="static",
            why="saved by transformers 5",
        ),
        Example(
            "healthy",
            "tests/folders/tokenizer_of_transformers_5",
            requires={"transformers": ">=5"},
            depth="static",
        ),
        Example("healthy", "tests/folders/vocabulary_padded", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        static = case.static
        settings = static.tokenizer_config.require()
        unknown = unknown_tokenizer_class(static)
        listed = special_tokens_in_a_list(static)
        if unknown is None and listed is None:
            return
        version = case.environment.version("transformers") or "the installed release"
        evidence = []
        changes: dict[str, object] = {}
        if unknown is not None:
            evidence.append(
                Measurement("tokenizer_class", unknown, f"not a class of transformers {version}")
            )
            changes["tokenizer_class"] = "PreTrainedTokenizerFast"
            if adds_prefix_space(static):
                evidence.append(Measurement("add_prefix_space", True, "tokenizer.json"))
                changes["add_prefix_space"] = True
        if listed is not None:
            evidence.append(
                Measurement("extra_special_tokens", listed[:20], "a list; a dictionary is read")
            )
            changes["additional_special_tokens"] = listed
        if "backend" in settings:
            evidence.append(Measurement("backend", settings["backend"], "written since 5"))
        removed = " and remove extra_special_tokens" if listed is not None else ""
        yield self.finding(
            "error",
            f"transformers {version} cannot read {_FILE}: "
            + (
                f"it has no class {unknown}."
                if unknown is not None
                else "extra_special_tokens is a list."
            ),
            location=Location("file", _FILE),
            evidence=tuple(evidence),
            proof=Proof(
                "measured", ("the file was compared with the source of the installed transformers")
            ),
            fixes=(
                Fix(
                    f"In a copy of the folder, write {json.dumps(changes)} into {_FILE}{removed}; "
                    "transformers 5 reads that too.",
                    "manual",
                ),
                Fix("Or use transformers 5.", "manual"),
            ),
        )
