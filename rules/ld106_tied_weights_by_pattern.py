"""LD106: a class lists its tied weights as patterns, which PEFT treats as names."""

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
    """PEFT asks which layers are tied to the embeddings, and the class lists its tied weights as
    regular expressions.

    ## What happens
    `get_peft_model` raises `AttributeError: 're.Pattern' object has no attribute 'rpartition'`.

    ## Why
    `_tied_weights_keys` is a list of names; classes with many layers also use patterns (Zamba 2
    shares one block between its layers). PEFT splits each entry at its last dot. The patterns are
    added while the layers are created, so a model cut down to one layer of each kind does not show
    the failure: it is seen at full size only.

    ## Versions
    transformers 4 with PEFT 0.18 and later; in transformers 5 the lists hold names only.

    ## Fix
    A patch of PEFT, so that it sees the names only.

    ## Links
    https://huggingface.co/docs/transformers/model_doc/zamba2
    """

    code = "LD106"
    name = "tied-weights-by-pattern"
    summary = "The class lists its tied weights as regular expressions, which PEFT treats as names."
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
            f"PEFT asks which layers are tied to the embeddings, and {structure.model_class} "
            "lists its tied weights as regular expressions, which PEFT treats as names: "
            f"{error.type}.",
            location=Location("module", "model"),
            evidence=(
                Measurement("get_peft_model", f"{error.type}: {error.message}", "installed PEFT"),
                Measurement("raised in", error.where, "its traceback"),
            ),
            proof=Proof("executed", "PEFT was run on the full-size model, on the meta device"),
            fixes=(
                Fix(
                    "Patch PEFT before the adapters are added, so that it sees the names only "
                    "(lora_doctor.apply as the first line of the training script).",
                    "safe",
                    patch=Patch("no_embeddings_to_tie"),
                ),
            ),
            explains=("attaches",),
        )
