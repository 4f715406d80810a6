"""LD105: PEFT looks for weights tied to input embeddings that the class cannot give."""

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


class TyingWithoutInputEmbeddings(Rule):
    """PEFT asks a model with tied weights for its input embeddings, and `get_input_embeddings`
    raises.

    ## What happens
    `get_peft_model` raises `NotImplementedError: get_input_embeddings not auto-handled for ...`.
    Models that tie other weights than those of tokens are hit (RT-DETR ties its detection heads),
    and models that have their token embeddings where transformers does not look for them.

    ## Why
    PEFT looks which layers are tied to the input embeddings, on every model whose class lists tied
    weights. `get_input_embeddings` raises where a class does not override it and has its embeddings
    under none of the usual names.

    ## Versions
    PEFT 0.18 and later with transformers 5, which lists tied weights as pairs; with the lists of
    transformers 4 PEFT does not ask for the embeddings.

    ## Fix
    A patch by which nothing is tied to embeddings that cannot be had. Or the method, given to the
    class before `get_peft_model`.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model
    """

    code = "LD105"
    name = "tying-without-input-embeddings"
    summary = "PEFT looks for weights tied to input embeddings, and the class has none to give."
    depth = "meta"
    symptoms = (
        Symptom(r"get_input_embeddings` not auto.handled", "transformers 5"),
        Symptom(r"_tied_weights_keys` as a dict but doesn't implement 'get_input_embeddings'"),
    )
    examples = (
        Example(
            "broken",
            "arch:pp_formulanet",
            {"model_class": "AutoModelForImageTextToText", "target_modules": ["q_proj", "v_proj"]},
            {"transformers": ">=5.20", "peft": ">=0.21"},
            why="tied weights in a decoder that the class does not name",
        ),
        Example("healthy", "arch:wav2vec2", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
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
