"""LD631: an adapter's file that holds weights of the base model, too."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, quoted
from lora_doctor.rules._saved_adapter import base_class, loaded, weights_file


class AdapterFileHoldsBaseWeights(Rule):
    """The file of a saved adapter holds weights of the base model beside those of the adapter.

    ## What happens
    Loading works, and says nothing: the weights in the file take the place of those of the base
    model. On the base model that was trained nothing changes but the size of the file. On another
    revision of it, or a base model that was changed since, the model that answers is a mixture. A
    base model that is loaded in 4 or 8 bits has other shapes, and loading raises `size mismatch`;
    servers such as vLLM refuse the file.

    ## Why
    The state dict of the whole model was saved as `adapter_model.safetensors`: by
    `save_file(model.state_dict(), ...)`, by a script that gathers a sharded model, or from a
    checkpoint of DeepSpeed or FSDP. `save_pretrained` saves the adapter alone, with the embeddings
    where tokens were added.

    ## Versions
    All.

    ## Fix
    `save_pretrained` of the PeftModel, or of the wrapped model with
    `state_dict=accelerator.get_state_dict(model)`: PEFT leaves the base model's weights out.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD631"
    name = "adapter-file-holds-base-weights"
    summary = "The file of a saved adapter holds weights of the base model, which loading replaces."
    depth = "meta"
    about_saved_adapter = True
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
            f"{len(names)} of {loading.landing.tensors} tensors in the adapter's file are weights "
            "of the base model: loading the adapter replaces those of the base model by them.",
            location=weights_file(case),
            evidence=(
                Measurement("of the base model", quoted(names, 3), "safetensors header"),
                Measurement("their numbers", elements, "safetensors header"),
                base_class(loading),
            ),
            proof=loaded(loading),
            fixes=(
                Fix(
                    "Save the adapter with save_pretrained of the PeftModel, which leaves the base "
                    "model's weights out.",
                    "manual",
                ),
            ),
        )
