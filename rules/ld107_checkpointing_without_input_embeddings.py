"""LD107: preparing a quantized model for checkpointing asks for input embeddings it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)


class CheckpointingWithoutInputEmbeddings(Rule):
    """`prepare_model_for_kbit_training` with gradient checkpointing asks for the input embeddings,
    and the class has none.

    ## What happens
    `prepare_model_for_kbit_training` raises `NotImplementedError`, in most releases without a
    message (later 4.x: `get_input_embeddings not auto-handled for ...`), on models that do not
    start with one token embedding (CLIP, wav2vec 2).

    ## Why
    Reentrant checkpointing drops gradients unless one of its inputs requires a gradient. So
    preparing a quantized model makes the output of the input embeddings require one
    (`enable_input_require_grads`), whether or not the layers are fed by token embeddings.

    ## Versions
    `NotImplementedError`: transformers 4; from 5 on it is a warning.

    ## Fix
    `gradient_checkpointing_kwargs: {use_reentrant: false}`, with which the embeddings are not
    needed; results and memory are the same.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/quantization
    """

    code = "LD107"
    name = "checkpointing-without-input-embeddings"
    summary = "Preparation for checkpointing needs input embeddings, which the class lacks."
    depth = "meta"
    symptoms = (
        Symptom(
            r"get_input_embeddings` not auto.handled",
            "transformers 4.5x",
            unless=r"\bget_peft_model_state_dict\b",
        ),
        Symptom(r"\bNotImplementedError:?\s*$", "transformers 4, get_input_embeddings", alone=True),
        Symptom(
            r"NotImplementedError:?\s*$",
            "transformers 4, get_input_embeddings",
            context=r"in get_input_embeddings\b|get_input_embeddings\(\)",
            unless=r"\bget_peft_model_state_dict\b",
        ),
        Symptom(r"does not expose input embeddings", "transformers 5, a warning"),
    )
    examples = (
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
            "healthy",
            "arch:clip",
            {
                "target_modules": ["q_proj", "v_proj"],
                "load_in_8bit": True,
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": False},
            },
            why="nobody asks for the embeddings",
        ),
        Example("healthy", "arch:wav2vec2", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        options: dict[str, Any] = dict(case.recipe.get("gradient_checkpointing_kwargs") or {})
        reentrant = options.get("use_reentrant") is not False
        wanted = case.recipe.quantized and case.recipe.get("gradient_checkpointing") and reentrant
        if not wanted or structure.input_gradients_error is None:
            return
        edits = (Edit("gradient_checkpointing_kwargs", {**options, "use_reentrant": False}),)
        yield self.finding(
            "error",
            f"{structure.model_class} cannot return its input embeddings, and "
            "prepare_model_for_kbit_training with gradient checkpointing needs them: it will "
            f"raise {structure.input_gradients_error.type}.",
            location=Location("recipe", "gradient_checkpointing"),
            evidence=(
                Measurement("get_input_embeddings",
                        str(structure.input_embeddings_error or ""),
                        "full-size class on the meta device, method called"),
                Measurement("enable_input_require_grads", str(structure.input_gradients_error),
                        "full-size class on the meta device, method called"),
                Measurement("quantization", case.recipe.quantized, "recipe"),
            ),
            proof=Proof("measured", ("both methods were called on the full-size class, on the "
                                    "meta device")),
            fixes=(
                Fix("Use non-reentrant checkpointing, which does not need the embeddings: "
                    "use_reentrant: false.", "safe", edits),
            ),
            explains=("builds", "forward", "gradients", "steps", "adapters-move", "loss-falls"),
        )  # fmt: skip
