"""LD220: the chosen initialisation is computed from data, and nothing computes it."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
    Symptom,
    may_initialise,
)

#: The initialisations of PEFT that look at data, each with its function that does it.
_MADE_BY = {
    "corda": "preprocess_corda",
    "eva": "initialize_lora_eva_weights",
    "lora_ga": "preprocess_loraga",
}
#: What is computed before the adapters are added, and without which PEFT does not add them.
_REFUSED = "corda"


class InitialisationNotPrepared(Rule):
    """`init_lora_weights` names an initialisation that is computed from data (`corda`, `eva`,
    `lora_ga`), and the function that computes it is not called.

    ## What happens
    With `corda`, `get_peft_model` raises ``ValueError: `eigens` attribute not found for layer,
    please run `preprocess_corda` first``. With `eva` and `lora_ga` nothing is raised: the adapters
    start at random, as without the setting, and the run is one of plain LoRA under another name.

    ## Why
    These methods run batches through the model and decompose what they see. PEFT does that in
    functions of its own, which a config cannot call: `preprocess_corda` and `preprocess_loraga`
    before `get_peft_model`, `initialize_lora_eva_weights` after it. A framework that hands
    `init_lora_weights` on (`peft_init_lora_weights` of axolotl) does not call them.

    ## Versions
    `eva` and `corda` exist from PEFT 0.14 on, `lora_ga` in newer releases.

    ## Fix
    By hand: call the function. Or take the setting out, which changes how training starts.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/lora
    https://github.com/axolotl-ai-cloud/axolotl/issues/2507
    """

    code = "LD220"
    name = "initialisation-not-prepared"
    summary = "The chosen initialisation is computed from data, and nothing computes it."
    depth = "static"
    symptoms = (Symptom(r"`eigens` attribute not found for layer, please run `preprocess_corda`"),)
    descriptions = (
        Symptom(r"\bpreprocess_corda\b.{0,80}\b(?:missing|not called|never called|first)\b"),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": "corda"},
            {"peft": ">=0.14"},
            depth="static",
        ),
        Example(
            "broken",
            "tests/scripts/eva_not_initialised.py",
            depth="static",
            why="trained as plain LoRA",
        ),
        Example(
            "healthy",
            "tests/scripts/corda_prepared.py",
            requires={"peft": ">=0.14"},
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": "pissa"},
            {"peft": ">=0.8"},
            depth="static",
            why="made of the weights alone",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        start = str(case.asked.get("init_lora_weights") or "")
        function = _MADE_BY.get(start)
        if function is None or case.source.kind == "module":
            return
        if case.has("adapter") or case.has("dry_run"):
            return  # it is loaded, and its start with it; the run itself tells
        program = case.program.program if case.has("program") else None
        if program is not None and may_initialise(case.program, function):
            return
        severity: Severity = (
            "error" if start == _REFUSED else "info" if program is None else "warning"
        )
        becomes = (
            "get_peft_model refuses the config"
            if start == _REFUSED
            else "the adapters start at random, as plain LoRA does"
        )
        place = case.asked.places.get("init_lora_weights")
        yield self.finding(
            severity,
            f"init_lora_weights={start} is computed from data by {function}, "
            + ("which nothing calls" if program is not None else "which a config cannot call")
            + f": without that call {becomes}.",
            location=Location("file", place.file, place.line)
            if place
            else Location("recipe", "init_lora_weights"),
            evidence=(
                Measurement("init_lora_weights", start, "recipe"),
                *(
                    (Measurement(f"calls of {function}", 0, "the files of the script"),)
                    if program is not None
                    else ()
                ),
            ),
            proof=Proof("read", "the recipe, and the script where there is one"),
            fixes=(
                Fix(
                    f"Call {function} {'after' if start == 'eva' else 'before'} get_peft_model.",
                    "manual",
                ),
                Fix(
                    "Take init_lora_weights out: the adapters start as plain LoRA.",
                    "unsafe",
                    (Edit("init_lora_weights", REMOVE),),
                ),
            ),
        )
