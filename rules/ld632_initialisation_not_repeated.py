"""LD632: a random initialisation changes the base weights, and loading does not repeat it."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._round_trip import comes_back, difference, round_trip

_KEY = "init_lora_weights"


class InitialisationNotRepeated(Rule):
    """`init_lora_weights` subtracts the initial adapter from the base weights and computes it with
    random numbers. Loading the adapter repeats this with different random numbers.

    ## What happens
    Training with `init_lora_weights="pissa_niter_4"` works. But the saved adapter, loaded in
    another process, gives other outputs than the model that was trained. How different they are
    depends on how far apart the singular values of the weights are.

    ## Why
    PiSSA subtracts the initial `B @ A` from the weight and trains `A` and `B` on the residual. The
    adapter folder has the trained `A` and `B` and the setting, and loading computes the residual
    again. The fast decomposition (`svd_lowrank`) is randomized, the full one (`"pissa"`) is not.

    ## Versions
    PEFT 0.10 and later.

    ## Fix
    Use `"pissa"`. It takes longer to start and has slightly different initial values, so it is not
    applied by default. Or save the adapter as plain LoRA, with `save_pretrained(...,
    path_initial_model_for_weight_conversion=...)`.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/lora
    """

    code = "LD632"
    name = "initialisation-not-repeated"
    summary = "A random initialisation changes the base weights, and loading does not repeat it."
    depth = "tiny"
    descriptions = (
        Symptom(
            r"\b(?:pissa|olora|corda)\b.{0,60}\bload\w*\b.{0,60}\b(?:wrong|differ\w*|garbage|o"
            r"ther outputs?)"
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], _KEY: "pissa_niter_4"},
            requires={"peft": ">=0.10"},
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], _KEY: "pissa"},
            requires={"peft": ">=0.10"},
            why="the full decomposition is deterministic",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        start = case.recipe.get(_KEY)
        if not isinstance(start, str):
            return
        seen, _ = round_trip(case)
        check = seen.check("save-reload")
        if (
            check is None
            or check.status != "failed"
            or check.raised
            or check.name in case.explained
        ):
            return
        if not comes_back(case, (Edit(_KEY, True),)):
            return
        exact = (Edit(_KEY, start.partition("_niter_")[0]),)
        is_fast = "_niter_" in start and comes_back(case, exact)
        yield self.finding(
            "warning",
            f"init_lora_weights {start!r} changes the base weights with random numbers, and "
            "loading the adapter draws new ones: the loaded model is not the one that was trained.",
            location=Location("recipe", _KEY),
            evidence=(
                *difference(seen, check.name, "logits after loading"),
                Measurement("with the default initialisation", "the same logits", "executed"),
            ),
            proof=Proof(
                "executed", "the adapters were trained, saved and loaded with another seed"
            ),
            fixes=(
                *(
                    (
                        Fix(
                            f"Use {exact[0].value!r}: deterministic, but slower to start.",
                            "unsafe",
                            exact,
                        ),
                    )
                    if is_fast
                    else ()
                ),
                Fix(
                    "Save the adapter as plain LoRA: save_pretrained(DIR, "
                    "path_initial_model_for_weight_conversion=DIR_OF_THE_UNTRAINED_ADAPTER).",
                    "manual",
                ),
            ),
            explains=(check.name,),
        )
