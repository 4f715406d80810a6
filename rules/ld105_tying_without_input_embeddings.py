"""LD105: PEFT asks for the input embeddings of a class that has none."""

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
    Affected are models that tie weights other than token embeddings (RT-DETR ties its detection
    heads), and models whose token embeddings are not where transformers looks for them.

    ## Why
    For every model whose class lists tied weights, PEFT looks up which layers are tied to the input
    embeddings. `get_input_embeddings` raises where the class does not override it and its
    embeddings have none of the usual names.

    ## Versions
    PEFT 0.18 and later with transformers 5, which lists tied weights as pairs; with the lists of
    transformers 4 PEFT does not ask for the embeddings.

    ## Fix
    A patch with which PEFT treats such a model as having nothing tied to its input embeddings. Or
    define the method on the class before `get_peft_model`.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/model
    """

    code = "LD105"
    name = "tying-without-input-embeddings"
    summary = (
        "PEFT looks for weights tied to the input embeddings, and the class cannot return any."
    )
    depth = "meta"
    symptoms = (
        Symptom(
            r"get_input_embeddings` not auto.handled",
            "transformers 5",
            unless=r"\bget_peft_model_state_dict\b",
        ),
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
            proof=Proof("executed", "PEFT was run on the full-size model, on the meta device"),
            fixes=(
                Fix(
                    "Patch PEFT before the adapters are added, so that it takes nothing as "
                    "tied to the missing embeddings (lora_doctor.apply as the first line of "
                    "the training script).",
                    "safe",
                    patch=Patch("no_embeddings_to_tie"),
                ),
                Fix(
                    "Or define where they are, before get_peft_model: "
                    f"{structure.model_class}.get_input_embeddings = lambda self: self.{path}",
                    "manual",
                ),
            ),
            explains=("builds", "attaches"),
        )
