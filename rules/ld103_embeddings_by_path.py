"""LD103: token embeddings that the model's code reaches by a path that PEFT has moved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    CHECKS,
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
from lora_doctor.rules._source_line import line_at

if TYPE_CHECKING:
    from lora_doctor.rule_api import Structure, Verification

_MISSING = re.compile(r"'(?P<holder>\w+)' object has no attribute '(?P<name>\w+)'")


class EmbeddingsByPath(Rule):
    """The model's code accesses the token embeddings by a module path that no longer exists once
    PEFT has wrapped the model.

    ## What happens
    A forward with `self.llm.model.embed_tokens` raises `'Gemma3ForCausalLM' object has no attribute
    'embed_tokens'` after `self.llm = get_peft_model(self.llm, ...)`, and a forward that reads
    `embed_tokens.weight` raises `'ModulesToSaveWrapper' object has no attribute 'weight'` when the
    embeddings are in `modules_to_save`.

    ## Why
    A PEFT model forwards attribute access to what it wraps, but one level further in: `llm.model`
    was the decoder and is now the whole language model. Helpers that try one path after the other
    are wrong again with the next wrapper. `get_input_embeddings()` is forwarded by every wrapper
    and returns the module that is in use.

    ## Versions
    All versions of PEFT; the `weight` of `ModulesToSaveWrapper` is passed on from PEFT 0.8 on.

    ## Fix
    `get_input_embeddings()` instead of the path.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model
    """

    code = "LD103"
    name = "embeddings-by-path"
    summary = "The token embeddings are not where the model's code looks for them."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"(?<!Config' )object has no attribute "
            r"'(?:\w*embed(?:s|ding|dings|_tokens|_in|_out|_positions)?|wte|wpe)'"
        ),
        Symptom(r"'ModulesToSaveWrapper' object has no attribute 'weight'", "PEFT before 0.8"),
    )
    examples = (
        Example(
            "broken",
            "tests.salmonn:adapted_by_path",
            why="the model wraps its own language model and does not look for it where it then is",
        ),
        Example("healthy", "tests.salmonn:adapted", why="the method, in the same place"),
        Example(
            "healthy",
            "tests.salmonn:by_path",
            {"target_modules": r"llm\..*\.(q_proj|v_proj)"},
            why="the recipe's wrapper stands around the whole: the path inside is what it was",
        ),
        Example(
            "healthy",
            "tests.models:embeddings_method_out_of_date",
            {"target_modules": ["q_proj"]},
            {"transformers": ">=5", "peft": ">=0.18"},
            why="the same message, while PEFT asks for the embeddings: LD105 reports that",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = case.verification
        if not _explained(case, seen):
            yield from self._by_path(case.structure, seen)

    def _by_path(self, structure: Structure, seen: Verification) -> Iterator[Finding]:
        """The forward raised an AttributeError on its way to the embeddings."""
        message, where = _attribute_error(seen)
        missing = _MISSING.search(message)
        if missing is None:
            return
        error = f"AttributeError: {missing[0]}"
        embeddings = [group for group in structure.groups if group.kind == "embedding"]
        leaves = {group.leaf for group in embeddings}
        line = line_at(where)
        chain = _chain(line, leaves)
        if missing["name"] not in leaves and not chain:
            return
        leaf = next((one for one in leaves if one in (missing["name"], *chain.split("."))), "")
        now = ", ".join(path for group in embeddings if group.leaf == leaf
                        for path in group.examples)  # fmt: skip
        owner = ".".join(chain.split(".")[:2]) or "the language model"
        adapted = (
            f" (PEFT's {', '.join(structure.built_in_adapters)})"
            if structure.built_in_adapters
            else ""
        )
        wrapped = " once PEFT has wrapped the model" if adapted or seen.outcome == "failed" else ""
        evidence = [
            Measurement("forward", error, f"{seen.depth} run, executed, at {where}"),
            Measurement("the embeddings are at", now, f"the module tree{adapted}"),
        ]
        if line:
            evidence.append(Measurement("line", line, where))
        yield self.finding(
            "error",
            f"The code accesses the token embeddings by a path that does not exist{wrapped}: "
            f"{chain or missing['name']} ({where}).",
            location=Location("module", now),
            evidence=tuple(evidence),
            proof=Proof("executed", f"the forward raised {error}"),
            fixes=(
                Fix(
                    f"Replace {chain.removesuffix('.weight') or 'the path'} by "
                    f"{owner}.get_input_embeddings(): every PEFT wrapper forwards that method.",
                    "manual",
                ),
            ),
            explains=tuple(CHECKS),
        )


def _explained(case: Case, seen: Verification) -> bool:
    """Whether it failed before any forward, and an earlier finding has said why: PEFT and the
    preparation of quantized models ask for the embeddings themselves."""
    first = next((check.name for check in seen.failed_checks), "")
    return first in ("builds", "attaches") and first in case.explained


def _attribute_error(seen: Verification) -> tuple[str, str]:
    """Message and place of an AttributeError that ended the contract, with adapters or before."""
    error = seen.failure or seen.base_error
    if error is None or error.type != "AttributeError":
        return "", ""
    return error.message, error.where


def _chain(line: str, leaves: set[str]) -> str:
    """The attribute access in a line that goes through an embedding module, by its name."""
    for found in re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", line):
        if leaves & set(str(found).split(".")[1:]):
            return str(found)
    return ""
