"""LD626: a saved adapter that was trained with another model class."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Proof, Rule
from lora_doctor.rules._saved_adapter import base_class, config_file


class AdapterOfAnotherClass(Rule):
    """The config of a saved adapter names another model class than the one that is loaded.

    ## What happens
    Layers have other paths, and the trained head does not exist or is another one. Adapters that do
    match are loaded into a model for another task.

    ## Why
    Without a `task_type` PEFT writes the class that was trained into `auto_mapping` of
    adapter_config.json. This model has no such class, or another was asked for with `--class`.

    ## Versions
    All that write `auto_mapping`: PEFT 0.3 and later.

    ## Fix
    Load the base model with the class that was trained, for example by `--class`.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD626"
    name = "adapter-of-another-class"
    summary = "A saved adapter was trained with another model class than the one that is loaded."
    depth = "meta"
    about_saved_adapter = True
    told_as = (
        "The adapter was trained with a classification model and is loaded into a causal LM.",
    )
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
            f"The adapter was trained with {trained}; the base model is a {loading.model_class}.",
            location=config_file(case),
            evidence=(
                Measurement("auto_mapping.base_model_class", trained, "adapter_config.json"),
                base_class(loading),
            ),
            proof=Proof("measured", "the class in the config was compared with the loaded one"),
            fixes=(Fix(f"Load the base model as {trained}.", "manual"),),
        )
