"""LD626: a saved adapter that was trained on another class of the model."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Proof, Rule
from lora_doctor.rules._saved_adapter import base_class, config_file


class AdapterOfAnotherClass(Rule):
    """The config of a saved adapter names another class than the one that is loaded.

    ## What happens
    Layers stand at other places, and the head that was trained has none, or is another. What lands
    does so in a model that answers another question.

    ## Why
    Without a `task_type` PEFT writes the class that was trained into `auto_mapping` of
    adapter_config.json. This model has no such class, or another was asked for with `--class`.

    ## Versions
    All that write `auto_mapping`: PEFT 0.3 and later.

    ## Fix
    Load the base model as the class that was trained, such as `--class` with its name.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD626"
    name = "adapter-of-another-class"
    summary = "A saved adapter was trained on another class than the one that is loaded."
    depth = "meta"
    about_saved_adapter = True
    examples = (
        Example(
            "broken",
            "tests.saved_adapters:of_another_class",
            {"model_class": "LlamaForSequenceClassification"},
            loaded=True,
            depth="meta",
        ),
        Example("healthy", "tests.saved_adapters:lora", loaded=True, depth="meta"),
        Example("healthy", "tests.saved_adapters:vit_with_its_head", loaded=True, depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        trained = case.adapter.base_class
        loading = case.adapter_loading
        if not trained or trained == loading.model_class:
            return
        yield self.finding(
            "warning",
            f"The adapter was trained on {trained}; this is {loading.model_class}.",
            location=config_file(case),
            evidence=(
                Measurement("auto_mapping.base_model_class", trained, "adapter_config.json"),
                base_class(loading),
            ),
            proof=Proof("measured", "the class in the config and the one that is loaded"),
            fixes=(Fix(f"Load the base model as {trained}.", "manual"),),
        )
