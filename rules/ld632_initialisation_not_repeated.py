"""LD632: the initialisation changes the base weights at random, and loading does so otherwise."""

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
)
from lora_doctor.rules._round_trip import comes_back, difference, round_trip

_KEY = "init_lora_weights"


class InitialisationNotRepeated(Rule):
    """`init_lora_weights` takes the start of the adapter out of the base weights, finds it with
    random numbers, and loading the adapter repeats that with others.

    ## What happens
    Training with `init_lora_weights="pissa_niter_4"` is sound. The adapter folder, loaded in
    another process, answers otherwise than the model that was trained: how much depends on how far
    apart the singular values of the weights are.

    ## Why
    PiSSA trains `A` and `B` on what is left of the weight without their first values. The folder
    holds the trained `A` and `B` and the setting; loading computes the rest of the weight anew, and
    the fast decomposition (`svd_lowrank`) is a random one. The full one (`"pissa"`) is not.

    ## Versions
    PEFT 0.10 and later.

    ## Fix
    `"pissa"`, which takes longer to start and begins from slightly other values, so it is not
    applied by default; or save the adapter as plain LoRA, with `save_pretrained(...,
    path_initial_model_for_weight_conversion=...)`.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/lora
    """

    code = "LD632"
    name = "initialisation-not-repeated"
    summary = "A random initialisation changes the base weights, and loading does so otherwise."
    depth = "tiny"
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
            why="the full decomposition gives the same each time",
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
            f"init_lora_weights {start!r} changes the base weights by random numbers, and loading "
            "the adapter draws others: the loaded model is not the one that was trained.",
            location=Location("recipe", _KEY),
            evidence=(
                *difference(seen, check.name, "logits after loading"),
                Measurement("with the usual initialisation", "the same logits", "executed"),
            ),
            proof=Proof(
                "executed", "the adapters were trained, saved and loaded with another seed"
            ),
            fixes=(
                *(
                    (Fix(f"Use {exact[0].value!r}: not random, slower to start.", "unsafe", exact),)
                    if is_fast
                    else ()
                ),
                Fix(
                    "Save it as plain LoRA: save_pretrained(DIR, "
                    "path_initial_model_for_weight_conversion=DIR_OF_THE_UNTRAINED_ADAPTER).",
                    "manual",
                ),
            ),
            explains=(check.name,),
        )
