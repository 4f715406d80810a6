"""LD562: a saved adapter is loaded onto a PEFT model, and none of its weights arrive."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, loaded_onto_adapters
from lora_doctor.rules._program import slips


class AdapterLoadedOntoAdapters(Rule):
    """`PeftModel.from_pretrained` is given the result of `get_peft_model` instead of the base
    model.

    ## What happens
    A warning (`Found missing adapter keys while loading the checkpoint`), and the model answers
    like the base model: the saved weights were loaded into nothing. Training continues from zero.

    ## Why
    The PEFT model puts `base_model.model.` in front of every name. The saved adapter was trained on
    the base model and has the names without it.

    ## Versions
    All versions of PEFT.

    ## Fix
    By hand: load the adapter onto the base model, without `get_peft_model`:
    `PeftModel.from_pretrained(base, folder, is_trainable=True)`.

    ## Links
    https://github.com/huggingface/peft/issues/2115, https://github.com/huggingface/peft/issues/868
    """

    code = "LD562"
    name = "adapter-loaded-onto-adapters"
    summary = "A saved adapter is loaded onto a PEFT model, and none of its weights arrive."
    depth = "static"
    symptoms = (
        Symptom(r"missing adapter keys.{0,80}base_model\.model\.base_model\.model"),
        Symptom(
            r"missing adapter keys while loading the checkpoint",
            context=r"PeftModel\w*\.from_pretrained\(\s*get_peft_model\(",
        ),
    )
    descriptions = (
        Symptom(
            r"\A(?=.*\bget_peft_model\b)(?=.*\bPeftModel\w*\.from_pretrained\b)(?=.*\b(?:ident"
            r"ical|same|no effect|like the base)\b).+"
        ),
    )
    told_as = ("A saved adapter loaded onto a model with adapters has no effect.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/loaded_onto_adapters.py",
            depth="static",
            why="get_peft_model was called before",
        ),
        Example("healthy", "tests/scripts/adapter_trainable.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        yield from slips(
            self,
            case,
            loaded_onto_adapters(case.program),
            "{code} loads a saved adapter onto the PEFT model of {other}: the names do not match, "
            "and none of the saved weights are loaded.",
            "adapters first added",
            "Load the adapter onto the base model, and do not call get_peft_model before.",
        )
