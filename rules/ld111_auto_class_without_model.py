"""LD111: the script loads the model with an auto class that does not have its model type."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    ModelClassError,
    Proof,
    Rule,
    Symptom,
)


class AutoClassWithoutModel(Rule):
    """The script loads the model with an auto class that has no class for its model type.

    ## What happens
    `ValueError: Unrecognized configuration class ... for this kind of AutoModel` at
    `from_pretrained`: in training, or only when the adapter is merged by another script.

    ## Why
    Each auto class has its own table. Vision-language models are in
    `AutoModelForImageTextToText` (`AutoModelForVision2Seq` before), and not in
    `AutoModelForCausalLM`; encoder-decoder models are in `AutoModelForSeq2SeqLM`.

    ## Versions
    The installed transformers is asked; tables change between releases.

    ## Fix
    By hand: load the model with one of the classes that have it.

    ## Links
    https://huggingface.co/docs/transformers/model_doc/auto
    """

    code = "LD111"
    name = "auto-class-without-model"
    summary = "The script loads the model with an auto class that does not have its model type."
    depth = "meta"
    symptoms = (
        Symptom(
            r"Unrecognized configuration class .{1,400}? for (?:this kind of AutoModel: )?"
            r"Auto(?:ModelFor\w+|ModelWithLMHead)"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/loaded_as_seq2seq.py",
            requires={"transformers": ">=4.41"},
            depth="meta",
            why="Phi-3 is no encoder-decoder model",
        ),
        Example(
            "healthy",
            "tests/scripts/best_model_evaluated.py",
            requires={"transformers": ">=4.46"},
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("structure") or not case.has("program"):
            return
        error = case.store.error("structure")
        loader = case.program.roles.loader
        if not isinstance(error, ModelClassError) or error.cause is None or loader is None:
            return
        if "auto_map" in case.static.config:
            return  # the repository's code may add the class
        model_type = case.static.config.get("model_type")
        known = error.cause.message
        owner = loader.name.split(".")[-2]
        yield self.finding(
            "error",
            f"{owner} does not load models of type {model_type}: from_pretrained raises ValueError "
            "(Unrecognized configuration class).",
            location=Location("file", loader.place.file, loader.place.line),
            evidence=(
                Measurement("model_type", model_type, "config.json"),
                Measurement("classes that load it", known, "the installed transformers"),
            ),
            proof=Proof("executed", "the installed transformers was asked for the class"),
            fixes=(Fix(f"Load it with one of {known}.", "manual"),),
        )
