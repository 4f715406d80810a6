"""LD591: the config of an adapter is made, and no model gets the adapter."""

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
    unused_adapter_configs,
)


class AdapterNeverPutOn(Rule):
    """A script makes a `LoraConfig`, gives it to nothing, and trains.

    ## What happens
    All weights are trained, and the whole model is saved. No error is raised: the run takes more
    memory than planned, and there is no `adapter_config.json` afterwards.

    ## Why
    A config is a description. `get_peft_model(model, config)`, `model.add_adapter(config)` or the
    `peft_config` of a trainer of TRL makes adapters of it.

    Reported is a config whose name nothing in the script reads, where nothing else puts adapters on
    a model.

    ## Versions
    All.

    ## Fix
    By hand: `model = get_peft_model(model, config)` before the trainer is created.

    ## Links
    https://github.com/THUDM/LongWriter/pull/34
    """

    code = "LD591"
    name = "adapter-never-put-on"
    summary = "The config of an adapter is made, and no model gets the adapter."
    depth = "static"
    descriptions = (Symptom(r"\b(?:forgot|missing|without)\b.{0,30}\bget_peft_model\b"),)
    examples = (
        Example(
            "broken",
            "tests/scripts/config_unused.py",
            depth="static",
            why="get_peft_model is not called",
        ),
        Example("healthy", "tests/scripts/adapters_first.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for found in unused_adapter_configs(case.program):
            yield self.finding(
                "warning",
                f"The {found.code} is given to nothing, and no other call puts adapters on the "
                "model: all its weights are trained.",
                location=Location("file", found.place.file, found.place.line),
                evidence=(Measurement("reads of the config", 0, str(found.place)),),
                proof=Proof("read", "every call of the script, and every name that it reads"),
                fixes=(Fix("Call get_peft_model(model, config) before training.", "manual"),),
            )
