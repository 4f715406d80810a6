"""LD592: weights are loaded into a PEFT model under names that it does not have."""

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
    states_that_fit_nothing,
)


class StateFitsNothing(Rule):
    """`model.load_state_dict(state, strict=False)` on a PEFT model, with the names of the base
    model or with those of a saved adapter.

    ## What happens
    None of the weights are loaded, and no error is raised: `strict=False` passes over names that
    the model does not have.

    ## Why
    `get_peft_model` puts `base_model.model.` in front of every name. `save_pretrained` and
    `get_peft_model_state_dict` leave the adapter's name out, so that `lora_A.default.weight` of the
    model is `lora_A.weight` in the file.

    The names in the file are read where it is beside the script.

    ## Versions
    All.

    ## Fix
    By hand: load weights of the base before `get_peft_model`, and those of an adapter with
    `set_peft_model_state_dict`.

    ## Links
    https://github.com/antonibigata/keysync/issues/46,
    https://github.com/tloen/alpaca-lora/issues/334
    """

    code = "LD592"
    name = "state-fits-nothing"
    summary = "Weights are loaded into a PEFT model under names that it does not have."
    depth = "static"
    symptoms = (
        Symptom(
            r"_IncompatibleKeys\(missing_keys=\[.{0,400}base_model\.model\..{0,4000}"
            r"unexpected_keys=\['(?!base_model)"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/state_of_the_base.py",
            depth="static",
            why="the file has the names of the base model",
        ),
        Example("healthy", "tests/scripts/state_loaded_first.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for found in states_that_fit_nothing(case.program):
            yield self.finding(
                "error",
                f"No name in {found.file} is one of the PEFT model, and strict=False passes over "
                "them: none of its weights are loaded.",
                location=Location("file", found.place.file, found.place.line),
                evidence=(Measurement("a name in the file", found.first, found.file),),
                proof=Proof("read", "the names in the file, and how PEFT names those of a model"),
                fixes=(
                    Fix(
                        "Load them before get_peft_model, or an adapter's with "
                        "set_peft_model_state_dict.",
                        "manual",
                    ),
                ),
            )
