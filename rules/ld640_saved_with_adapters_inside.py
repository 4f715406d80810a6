"""LD640: the base model is saved with its own `save_pretrained` while it contains PEFT layers."""

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
    saved_as_base,
)
from lora_doctor.rules._dry_run_script import LOOP, MODEL
from lora_doctor.rules._program import slips

_FIX = (
    "Call save_pretrained of the PeftModel to save the adapters, or of "
    "peft_model.merge_and_unload() to save the whole model."
)


class SavedWithAdaptersInside(Rule):
    """`get_peft_model` modifies the model in place. The model's own `save_pretrained` then writes
    the adapted layers under PEFT's names, which `from_pretrained` does not recognise.

    ## What happens
    Saving raises no error. On loading, every adapted layer is newly initialized ("Some weights were
    not initialized from the model checkpoint"): the loaded model has neither the adapters nor the
    pretrained weights of these layers.

    ## Why
    `q_proj.weight` is named `q_proj.base_layer.weight` while the model contains adapters. Only the
    `PeftModel` knows how to save what was trained. The same holds for `peft_model.get_base_model()`
    and for a model after `merge_adapter()`, which keeps the PEFT layers.

    A dry run finds this by the names of the weights that the command saved; in a script that is
    only read, by the object whose `save_pretrained` is called.

    ## Versions
    All.

    ## Fix
    `peft_model.save_pretrained(folder)` saves the adapters,
    `peft_model.merge_and_unload().save_pretrained(folder)` the whole model.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/checkpoint
    """

    code = "LD640"
    name = "saved-with-adapters-inside"
    summary = "The base model is saved with its own save_pretrained while it contains PEFT layers."
    depth = "static"
    symptoms = (
        Symptom(r"not (?:used|initialized)[\s\S]{0,400}\.base_layer\.weight"),
        Symptom(r"UNEXPECTED[\s\S]{0,200}\.base_layer\.|\.base_layer\.\S+\s*\|\s*UNEXPECTED"),
    )
    told_as = ("The merged model that was saved still has adapter layers when it is loaded again.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + LOOP + 'model.get_base_model().save_pretrained("out")\n',
            why="q_proj and v_proj are saved as base_layer",
        ),
        Example(
            "broken",
            "tests/scripts/saved_as_base.py",
            depth="static",
            why="the loaded model is saved, and not the PEFT model",
        ),
        Example(
            "healthy", "", script=MODEL + LOOP + 'model.merge_and_unload().save_pretrained("out")\n'
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("dry_run") and case.has("program"):
            yield from slips(
                self,
                case,
                saved_as_base(case.program),
                "{code} saves the loaded model, which contains the adapters of {other}: the "
                "adapted layers get names that from_pretrained does not recognise, and are newly "
                "initialized on loading.",
                "adapters added",
                _FIX,
            )
            return
        found = case.dry_run.saved_with_adapters
        if found is None:
            return
        source = "what the command wrote"
        yield self.finding(
            "warning" if found.adapter_too else "error",
            f"{found.model_class} is saved while it contains adapters: {found.weights} of its "
            "weights have names that from_pretrained does not recognise, and are newly initialized "
            "on loading.",
            location=Location("file", found.file, found.line)
            if found.file
            else Location("environment", found.path),
            evidence=(
                Measurement("folder", found.path, source),
                Measurement("names unknown to the class", list(found.names), source),
                Measurement("the adapter was saved as well", found.adapter_too, source),
            ),
            proof=Proof("executed", source),
            fixes=(Fix(_FIX, "manual"),),
        )
