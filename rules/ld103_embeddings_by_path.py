"""LD103: token embeddings that cannot be reached the way the model's code or the recipe does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lora_doctor.engine.case import Case
from lora_doctor.engine.rule import (
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Patch,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.results.structure import Structure
from lora_doctor.results.verification import CHECKS, Verification
from lora_doctor.rules._source_line import line_at

_MISSING = re.compile(r"'(?P<holder>\w+)' object has no attribute '(?P<name>\w+)'")


class EmbeddingsByPath(Rule):
    """The token embeddings are reached by a path that is not there once PEFT has wrapped the
    model, or by `get_input_embeddings`, which the model does not have.

    ## What happens
    A forward that says `self.llm.model.embed_tokens` raises `'Gemma3ForCausalLM' object has no
    attribute 'embed_tokens'` after `self.llm = get_peft_model(self.llm, ...)`, and one that reads
    `embed_tokens.weight` raises `'ModulesToSaveWrapper' object has no attribute 'weight'` when the
    embeddings are in `modules_to_save`.
    With transformers 5, PEFT looks for weights tied to the embeddings, and `get_peft_model` raises
    `NotImplementedError: get_input_embeddings not auto-handled for ...`. On a class that lists its
    tied weights by patterns (Zamba 2 in transformers 4) the same question ends in
    `'re.Pattern' object has no attribute 'rpartition'`.
    The other way round, `prepare_model_for_kbit_training` with gradient checkpointing raises
    `NotImplementedError`, mostly without a word, on models without one token embedding at
    their start (CLIP, wav2vec 2).

    ## Why
    A PEFT model passes on the attributes of what it wraps, one level further in: `llm.model` was
    the decoder and is the whole language model. Helpers that try one path after the other guess,
    and are wrong again with the next wrapper. `get_input_embeddings()` is passed on by every
    wrapper and returns the module that is in use.
    Reentrant checkpointing drops gradients unless its inputs need some, so that preparing a
    quantized model makes the embeddings' output need one, whatever feeds the layers.

    ## Versions
    Paths: all of PEFT; the `weight` of `ModulesToSaveWrapper` is passed on from PEFT 0.8 on.
    `NotImplementedError`: transformers 4; from 5 on it is a warning.

    ## Fix
    `get_input_embeddings()` in the place of the path. For the missing method:
    `gradient_checkpointing_kwargs: {use_reentrant: false}`, with which nobody asks for it; the
    numbers and the memory are the same. Where PEFT asks while it puts
    adapters on: a patch, by which nothing is tied to embeddings that cannot be had, or the method,
    given to the class.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model
    """

    code = "LD103"
    name = "embeddings-by-path"
    summary = "The token embeddings are not where the code or the recipe looks for them."
    depth = "meta"
    symptoms = (
        Symptom(r"object has no attribute '(?:\w*embed\w*|wte|wpe)'"),
        Symptom(r"'ModulesToSaveWrapper' object has no attribute 'weight'", "PEFT before 0.8"),
        Symptom(r"get_input_embeddings` not auto.handled", "transformers 4.5x"),
        Symptom(r"'re\.Pattern' object has no attribute 'rpartition'", "peft>=0.18"),
        Symptom(r"^\s*NotImplementedError:?\s*$", "transformers 4, get_input_embeddings"),
        Symptom(r"does not expose input embeddings", "transformers 5, a warning"),
    )
    examples = (
        Example(
            "broken",
            "tests.salmonn:adapted_by_path",
            why="the model wraps its own language model and does not look for it where it then is",
        ),
        Example(
            "broken",
            "arch:clip",
            {
                "target_modules": ["q_proj", "v_proj"],
                "load_in_8bit": True,
                "gradient_checkpointing": True,
            },
            {"transformers": "<5"},
            why="two towers and no embeddings of the whole, which preparing it asks for",
        ),
        Example(
            "broken",
            "arch:zamba2",
            {"target_modules": ["in_proj"]},
            {"transformers": ">=4.49,<5", "peft": ">=0.18"},
            why="which weights are tied is said by patterns, at full size only",
        ),
        Example("healthy", "tests.salmonn:adapted", why="the method, in the same place"),
        Example(
            "healthy",
            "tests.salmonn:by_path",
            {"target_modules": r"llm\..*\.(q_proj|v_proj)"},
            why="the recipe's wrapper stands around the whole: the path inside is what it was",
        ),
        Example("healthy", "arch:wav2vec2", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = [
            *self._asked_by_peft(case.structure),
            *self._tied_by_pattern(case.structure),
            *self._asked_for(case, case.structure),
        ]
        yield from found
        if case.reaches("tiny") and (not found or case.has("verification")):
            yield from self._by_path(case.structure, case.verification)

    def _asked_by_peft(self, structure: Structure) -> Iterator[Finding]:
        """PEFT asks for the embeddings of a model with tied weights, and it has none to give."""
        error, asked = structure.injection.error, structure.input_embeddings_error
        if error is None or asked is None or not error.message:
            return
        if error.message not in asked.message:
            return
        embeddings = [g for g in structure.groups if g.kind == "embedding" and g.examples]
        largest = max(embeddings, key=lambda group: group.shape, default=None)
        path = largest.examples[0] if largest else "the embeddings"
        yield self.finding(
            "error",
            f"PEFT looks for weights that are tied to the input embeddings, and "
            f"{structure.model_class}.get_input_embeddings raises {asked.type}.",
            location=Location("module", "model"),
            evidence=(
                Measurement("get_peft_model", f"{error.type}: {error.message}", "installed PEFT"),
                Measurement(
                    "embeddings", ", ".join(g.examples[0] for g in embeddings), "module tree"
                ),
            ),
            proof=Proof("executed", "PEFT was run on the real class"),
            fixes=(
                Fix(
                    "Patch PEFT's question before the adapters are put on, so that nothing is tied "
                    "to embeddings that cannot be had (lora_doctor.apply as the first line of the "
                    "training script).",
                    "safe",
                    patch=Patch("no_embeddings_to_tie"),
                ),
                Fix(
                    "Or say where they are, before get_peft_model: "
                    f"{structure.model_class}.get_input_embeddings = lambda self: self.{path}",
                    "manual",
                ),
            ),
            explains=("builds", "attaches"),
        )

    def _tied_by_pattern(self, structure: Structure) -> Iterator[Finding]:
        """PEFT reads the names of tied weights, and the class lists patterns among them."""
        error = structure.injection.error
        if error is None or "re.Pattern" not in error.message:
            return
        if "_tied_with_embedding" not in error.traceback:
            return
        yield self.finding(
            "error",
            f"PEFT asks which layers are tied to the embeddings, and {structure.model_class} lists "
            f"its tied weights with regular expressions, which PEFT takes for names: {error.type}.",
            location=Location("module", "model"),
            evidence=(
                Measurement("get_peft_model", f"{error.type}: {error.message}", "installed PEFT"),
                Measurement("raised in", error.where, "its traceback"),
            ),
            proof=Proof("executed", "PEFT was run on the real class"),
            fixes=(
                Fix(
                    "Patch PEFT's question before the adapters are put on, so that it hears the "
                    "names alone (lora_doctor.apply as the first line of the training script).",
                    "safe",
                    patch=Patch("no_embeddings_to_tie"),
                ),
            ),
            explains=("attaches",),
        )

    def _asked_for(self, case: Case, structure: Structure) -> Iterator[Finding]:
        """Preparing a quantized model asks for input embeddings, and there are none."""
        options: dict[str, Any] = dict(case.recipe.get("gradient_checkpointing_kwargs") or {})
        reentrant = options.get("use_reentrant") is not False
        wanted = case.recipe.quantized and case.recipe.get("gradient_checkpointing") and reentrant
        if not wanted or structure.input_gradients_error is None:
            return
        edits = (Edit("gradient_checkpointing_kwargs", {**options, "use_reentrant": False}),)
        yield self.finding(
            "error",
            f"{structure.model_class} has no input embeddings to be had, and "
            "prepare_model_for_kbit_training with gradient checkpointing asks for them: it will "
            f"raise {structure.input_gradients_error.type}.",
            location=Location("recipe", "gradient_checkpointing"),
            evidence=(
                Measurement("get_input_embeddings",
                        str(structure.input_embeddings_error or ""),
                        "the real class, called"),
                Measurement("enable_input_require_grads", str(structure.input_gradients_error),
                        "the real class, called"),
                Measurement("quantization", case.recipe.quantized, "recipe"),
            ),
            proof=Proof("measured", "both methods were called on the real class"),
            fixes=(
                Fix("Checkpoint without reentrance, which needs no such embeddings: "
                    "use_reentrant: false.", "safe", edits),
            ),
            explains=("builds", "forward", "gradients", "steps", "adapters-move", "loss-falls"),
        )  # fmt: skip

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
        evidence = [
            Measurement("forward", error, f"{seen.depth} run, executed, at {where}"),
            Measurement("the embeddings are at", now, f"the module tree{adapted}"),
        ]
        if line:
            evidence.append(Measurement("line", line, where))
        yield self.finding(
            "error",
            f"The code reaches the token embeddings by a path that is not there"
            f"{' once PEFT has wrapped the model' if adapted or seen.outcome == 'failed' else ''}: "
            f"{chain or missing['name']} ({where}).",
            location=Location("module", now),
            evidence=tuple(evidence),
            proof=Proof("executed", f"the forward raised {error}"),
            fixes=(
                Fix(
                    f"Write {owner}.get_input_embeddings() for "
                    f"{chain.removesuffix('.weight') or 'the path'} and call what it returns; "
                    "PEFT passes the method on, whichever wrapper stands around.",
                    "manual",
                ),
            ),
            explains=tuple(CHECKS),
        )


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
