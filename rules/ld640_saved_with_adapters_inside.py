"""LD640: the base model is saved by its own `save_pretrained` while PEFT's layers are in it."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._dry_run_script import LOOP, MODEL


class SavedWithAdaptersInside(Rule):
    """`get_peft_model` changes the model that it is given. Its own `save_pretrained` then writes
    the adapted layers under PEFT's names, and `from_pretrained` does not find them again.

    ## What happens
    Saving raises nothing. On loading, every adapted layer is newly initialized ("Some weights were
    not initialized from the model checkpoint"): the model that comes back has neither the adapters
    nor the pretrained weights of these layers.

    ## Why
    `q_proj.weight` is `q_proj.base_layer.weight` while the adapters are in the model. Only the
    `PeftModel` knows how to save what was trained. The same is so of `peft_model.get_base_model()`
    and of a model after `merge_adapter()`, which leaves PEFT's layers where they are.

    Found by execution: the names in the file that the command wrote.

    ## Versions
    All.

    ## Fix
    `peft_model.save_pretrained(folder)` for the adapters, or
    `peft_model.merge_and_unload().save_pretrained(folder)` for the whole model.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD640"
    name = "saved-with-adapters-inside"
    summary = "The base model is saved by its own save_pretrained while PEFT's layers are in it."
    depth = "static"
    symptoms = (
        Symptom(r"not (?:used|initialized)[\s\S]{0,400}\.base_layer\.weight"),
        Symptom(r"UNEXPECTED[\s\S]{0,200}\.base_layer\.|\.base_layer\.\S+\s*\|\s*UNEXPECTED"),
    )
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + LOOP + 'model.get_base_model().save_pretrained("out")\n',
            why="q_proj and v_proj are saved as base_layer",
        ),
        Example(
            "healthy", "", script=MODEL + LOOP + 'model.merge_and_unload().save_pretrained("out")\n'
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.dry_run.saved_with_adapters
        if found is None:
            return
        source = "what the command wrote"
        yield self.finding(
            "warning" if found.adapter_too else "error",
            f"{found.model_class} is saved with the adapters in it: {found.weights} of its weights "
            "have names that from_pretrained does not know, and are newly initialized on loading.",
            location=Location("file", found.file, found.line)
            if found.file
            else Location("environment", found.path),
            evidence=(
                Measurement("folder", found.path, source),
                Measurement("names that the class does not have", list(found.names), source),
                Measurement("an adapter is saved as well", found.adapter_too, source),
            ),
            proof=Proof("executed", source),
            fixes=(
                Fix(
                    "Save the PeftModel for the adapters, or "
                    "peft_model.merge_and_unload() for the whole model.",
                    "manual",
                ),
            ),
        )
