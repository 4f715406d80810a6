"""LD106: a class lists its tied weights by patterns, which PEFT takes for names."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
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


class TiedWeightsByPattern(Rule):
    """PEFT asks which layers are tied to the embeddings, and the class lists its tied weights with
    regular expressions.

    ## What happens
    `get_peft_model` raises `AttributeError: 're.Pattern' object has no attribute 'rpartition'`.

    ## Why
    `_tied_weights_keys` is a list of names, and of patterns where a class with many layers finds
    that shorter (Zamba 2 shares one block between its layers). PEFT splits each entry at its last
    dot. The list gets its patterns as the layers are made, so that a model cut down to one layer
    of each kind shows nothing: this is seen at full size only.

    ## Versions
    transformers 4 with PEFT 0.18 and later; the lists of transformers 5 hold names alone.

    ## Fix
    A patch of PEFT's question, so that it hears the names alone.

    ## Links
    https://huggingface.co/docs/transformers/model_doc/zamba2
    """

    code = "LD106"
    name = "tied-weights-by-pattern"
    summary = "The class lists tied weights by regular expressions, which PEFT takes for names."
    depth = "meta"
    symptoms = (Symptom(r"'re\.Pattern' object has no attribute 'rpartition'", "peft>=0.18"),)
    examples = (
        Example(
            "broken",
            "arch:zamba2",
            {"target_modules": ["in_proj"]},
            {"transformers": ">=4.49,<5", "peft": ">=0.18"},
            why="which weights are tied is said by patterns, at full size only",
        ),
        Example(
            "healthy",
            "arch:zamba2",
            {"target_modules": ["in_proj"]},
            {"transformers": ">=5"},
            why="the list has names alone",
        ),
        Example("healthy", "arch:gpt2", {"target_modules": ["c_attn"]}, why="tied, by name"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
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
