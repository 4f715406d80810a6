"""LD621: a saved adapter whose file lacks tensors for some of its layers."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Rule, quoted
from lora_doctor.rules._saved_adapter import LOADED, base_class, header_of, loaded, weights_file


class AdapterParametersWithoutValues(Rule):
    """The config of a saved adapter names layers for which its file has no tensors.

    ## What happens
    Loading warns about missing adapter keys and continues. The adapters of these layers are newly
    initialised: they have no effect until they are trained, and the model is not the one that was
    saved.

    ## Why
    The file was cut, merged or filtered; a sharded run saved the part of one process; or the config
    does not belong to the file: its target modules match more layers than were trained, for example
    after it was edited, or because a name matches more layers in this release of transformers.

    ## Versions
    All.

    ## Fix
    Save the adapter again with `save_pretrained` of the whole model, or set `target_modules` to the
    layers in the file.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD621"
    name = "adapter-parameters-without-values"
    summary = "The file of a saved adapter has no tensors for some layers of its config."
    depth = "meta"
    about_saved_adapter = True
    told_as = ("The loaded adapter has random weights, others each time.",)
    examples = (
        Example(
            "broken",
            "tests.saved_adapters:with_half_of_its_layers",
            loaded=True,
            depth="meta",
            why="the tensors of the second layer are not in the file",
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        loading = case.adapter_loading
        landing = loading.landing
        if landing.error or landing.nowhere or not landing.without_value:
            return
        yield self.finding(
            "error",
            f"{len(landing.without_value)} of {landing.parameters} parameters of the adapter "
            "are not in its file and keep their initial values.",
            location=weights_file(case),
            evidence=(
                Measurement("not in the file", quoted(landing.without_value, 4), LOADED),
                Measurement("tensors in the file", landing.tensors, header_of(case)),
                base_class(loading),
            ),
            proof=loaded(loading),
            fixes=(
                Fix(
                    "Save the adapter again from the whole model, or set target_modules in its "
                    "config to the layers in the file.",
                    "manual",
                ),
            ),
        )
