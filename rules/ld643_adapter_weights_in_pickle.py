"""LD643: the weights of a saved adapter are a pickle."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Proof, Rule
from lora_doctor.rules._saved_adapter import weights_file

_CONVERT = (
    "Convert it where you trust its source: tensors = torch.load('adapter_model.bin', "
    "map_location='cpu', weights_only=True); safetensors.torch.save_file({name: "
    "value.contiguous() for name, value in tensors.items()}, 'adapter_model.safetensors')."
)


class AdapterWeightsInPickle(Rule):
    """The weights of a saved adapter are in `adapter_model.bin`, which is a pickle.

    ## What happens
    PEFT loads the file where there is no `adapter_model.safetensors`. lora-doctor does not: names
    and shapes of the tensors are read without unpickling and are judged, values are not read, and
    training does not continue from them at depth `full`. Where the file holds more than a flat
    state dict, or was written by torch before 1.6, its tensors are not judged at all and the answer
    is undetermined.

    ## Why
    PEFT wrote this file before 0.7, and still does with `safe_serialization=False`. Unpickling can
    run code; `weights_only=True`, the default of torch since 2.6, refuses most of it.

    ## Versions
    All.

    ## Fix
    Convert the file to `adapter_model.safetensors`, or load the adapter where its source is trusted
    and save it again.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD643"
    name = "adapter-weights-in-pickle"
    summary = "The weights of a saved adapter are a pickle, whose values are not read."
    depth = "static"
    about_saved_adapter = True
    examples = (
        Example(
            "broken", "tests.saved_adapters:in_a_pickle", loaded=True, depth="static",
            why="saved with safe_serialization=False",
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="static"),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        adapter = case.adapter
        if not adapter.pickled:
            return
        read = "nothing of it was read" if adapter.header is None else "its values were not read"
        count = None if adapter.header is None else len(adapter.header.tensors)
        yield self.finding(
            "info",
            f"The weights of the adapter are in {adapter.weights_name}, a pickle: {read}.",
            location=weights_file(case),
            evidence=(
                Measurement("why", adapter.unread, "file")
                if count is None
                else Measurement("tensors in the file", count, "pickle, not loaded"),
            ),
            proof=Proof("measured", "the file was found, and was not loaded"),
            fixes=(Fix(_CONVERT, "manual"),),
        )
