"""LD623: a saved adapter whose tensors are empty."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
)
from lora_doctor.rules._saved_adapter import header_of, shape_text, weights_file


class AdapterTensorsEmpty(Rule):
    """Tensors of a saved adapter have no elements: the trained weights were not saved.

    ## What happens
    The file is a few kilobytes. Loading raises `size mismatch ... torch.Size([0])`.

    ## Why
    With DeepSpeed ZeRO-3 each process holds a part of every parameter, and the module itself has an
    empty tensor. `save_pretrained` on such a model, without gathering, saves the empty tensors. The
    trained values are only in the DeepSpeed checkpoint. A file without any tensor comes from a
    state dict from which all names were filtered.

    ## Versions
    All, with DeepSpeed ZeRO-3 or FSDP with sharded parameters.

    ## Fix
    `zero_to_fp32.py` in the checkpoint folder gathers the trained weights. In training, set
    `stage3_gather_16bit_weights_on_model_save`, or pass
    `state_dict=accelerator.get_state_dict(model)` to `save_pretrained`.

    ## Links
    https://huggingface.co/docs/peft/accelerate/deepspeed
    """

    code = "LD623"
    name = "adapter-tensors-empty"
    summary = "Tensors of a saved adapter are empty: a sharded run saved no values."
    depth = "static"
    about_saved_adapter = True
    symptoms = (
        Symptom(r"copying a param with shape torch\.Size\(\[0\]\) from checkpoint"),
        Symptom(r"LoRA tensor\(s\) have invalid shape", "PEFT 0.20+"),
    )
    descriptions = (
        Symptom(r"\bempty adapter"),
        Symptom(r"\badapter\w*(?:\.\w+)?\b.{0,60}\b(?:empty|size 0|\d+ ?(?:bytes?|kb|kib)\b)"),
    )
    told_as = (
        "The saved adapter file is empty, a few KB only, after training with DeepSpeed ZeRO-3.",
        "The weights that are saved with DeepSpeed stage 3 are incomplete.",
    )
    examples = (
        Example(
            "broken", "tests.saved_adapters:of_zero_stage_3", loaded=True, depth="static",
            why="every tensor has the shape [0]",
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="static"),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        tensors = case.adapter.weights.tensors
        empty = [name for name, tensor in tensors.items() if tensor.elements == 0]
        if tensors and not empty:
            return
        shapes = sorted({shape_text(tensors[name].shape) for name in empty})
        yield self.finding(
            "error",
            f"{len(empty)} of {len(tensors)} tensors of the adapter are empty: they were saved "
            "while the parameters were sharded."
            if tensors
            else "The file of the adapter has no tensors.",
            location=weights_file(case),
            evidence=(
                Measurement("empty tensors", quoted(empty, 3) or "no tensor", header_of(case)),
                Measurement("their shapes", ", ".join(shapes) or "none", header_of(case)),
            ),
            proof=Proof("measured", "the header of the file was read"),
            fixes=(
                Fix(
                    "Gather the weights of the DeepSpeed checkpoint with zero_to_fp32.py; in "
                    "training, set stage3_gather_16bit_weights_on_model_save.",
                    "manual",
                ),
            ),
        )
