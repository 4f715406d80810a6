"""LD631: an adapter file that also contains weights of the base model."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, Symptom, quoted
from lora_doctor.rules._saved_adapter import base_class, header_of, loaded, weights_file


class AdapterFileHoldsBaseWeights(Rule):
    """The file of a saved adapter contains weights of the base model as well as the adapter's own.

    ## What happens
    Loading succeeds without a message, and the weights in the file replace those of the base model.
    On the same base model only the file size is affected. On another revision, or on a base model
    that has changed since, the result is a mixture of both. A base model loaded in 4 or 8 bits has
    different shapes, and loading raises `size mismatch`. Servers such as vLLM reject the file.

    ## Why
    The state dict of the whole model was saved as `adapter_model.safetensors`: with
    `save_file(model.state_dict(), ...)`, by a script that gathers a sharded model, or from a
    DeepSpeed or FSDP checkpoint. `save_pretrained` saves only the adapter, and the embeddings if
    tokens were added.

    ## Versions
    All.

    ## Fix
    Save with `save_pretrained` of the PeftModel, for a sharded model with
    `state_dict=accelerator.get_state_dict(model)`: PEFT leaves out the base model's weights.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD631"
    name = "adapter-file-holds-base-weights"
    summary = (
        "The file of a saved adapter contains base model weights, which replace the loaded ones."
    )
    depth = "meta"
    about_saved_adapter = True
    symptoms = (
        Symptom(
            r"(?:\.layers\.\d+\.(?:\w+\.)*\w+(?<!_vector)|\.base_layer"
            r"|\.(?:embed_tokens|wte|lm_head))\.weight is unsupported "
            r"LoRA weight",
            "vLLM",
        ),
        Symptom(r"Unexpected name '[^']{1,200}\.base_layer\.weight': Not a lora_A", "llama.cpp"),
    )
    told_as = ("The adapter file is as large as the base model.",)
    examples = (
        Example(
            "broken",
            "tests.saved_adapters:with_the_whole_state_dict",
            loaded=True,
            depth="meta",
            why="model.state_dict() was saved as adapter_model.safetensors",
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        loading = case.adapter_loading
        names = loading.landing.over_base
        if not names or loading.landing.other_shapes:
            return
        tensors = case.adapter.weights.tensors
        elements = sum(tensors[name].elements for name in names if name in tensors)
        yield self.finding(
            "info",
            f"{len(names)} of {loading.landing.tensors} tensors in the adapter file are weights of "
            "the base model: loading the adapter overwrites the base model's own weights.",
            location=weights_file(case),
            evidence=(
                Measurement("tensors of the base model", quoted(names, 3), header_of(case)),
                Measurement("elements in them", elements, header_of(case)),
                base_class(loading),
            ),
            proof=loaded(loading),
            fixes=(
                Fix(
                    "Save the adapter with save_pretrained of the PeftModel, which leaves out the "
                    "base model's weights.",
                    "manual",
                ),
            ),
        )
