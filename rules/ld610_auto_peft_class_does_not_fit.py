"""LD610: PEFT's auto class for this task type does not load the class that was trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

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
from lora_doctor.rules._round_trip import round_trip, source

if TYPE_CHECKING:
    from lora_doctor.rule_api import AutoLoading, Verification


class AutoPeftClassDoesNotFit(Rule):
    """`AutoPeftModelFor...` of the recipe's `task_type` refuses the adapter folder, or loads
    another base class than the one that was trained.

    ## What happens
    Training, saving and `PeftModel.from_pretrained` work.
    `AutoPeftModelForCausalLM.from_pretrained` on the same folder raises `Unrecognized configuration
    class ... for this kind of AutoModel`, or loads only the language model although a
    vision-language model was trained.

    ## Why
    `AutoPeftModelFor...` loads the base with the auto class of the `task_type`
    (`AutoModelForCausalLM` for `CAUSAL_LM`), and the mapping of that auto class may not contain the
    class that was trained.

    ## Versions
    All versions of PEFT. Which classes the mappings have depends on transformers.

    ## Fix
    By hand: load the base model with the auto class that it was trained with, then
    `PeftModel.from_pretrained(base, DIR)`. The folder itself is complete. A `task_type` that
    lora-doctor proposed is not reported.

    ## Links
    https://huggingface.co/docs/peft/package_reference/auto_class
    """

    code = "LD610"
    name = "auto-peft-class-does-not-fit"
    summary = "PEFT's auto class for this task_type does not load the class that was trained."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"Unrecognized configuration class .{1,400}? for (this kind of AutoModel: )?"
            r"AutoModelFor(CausalLM|Seq2SeqLM)",
            weight=-1,
        ),
        Symptom(
            r"Unrecognized configuration class .{1,400}? for (this kind of AutoModel: )?"
            r"AutoModelFor\w+",
            context=r"\bAutoPeftModel|peft[\\/]auto\.py",
        ),
        Symptom(r"Expected target PEFT class: PeftModelFor\w+, but you have asked for"),
        Symptom(r"Cannot infer the auto class from the config, please make sure that you are"),
        Symptom(r"Cannot use `AutoPeftModel` with a task type, please use a specific class"),
    )
    told_as = ("AutoPeftModel loads another model class than the one that was trained.",)
    examples = (
        Example(
            "broken",
            "arch:llava",
            {
                "target_modules": r".*language_model.*\.(q_proj|v_proj)",
                "task_type": "CAUSAL_LM",
            },
            why="a vision-language model, which the mapping for causal language models lacks",
        ),
        Example(
            "healthy",
            "arch:llava",
            {"target_modules": r".*language_model.*\.(q_proj|v_proj)"},
            why="nobody asked for that task type",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen, saving = round_trip(case)
        if saving.auto is not None:
            yield self._auto(case, seen, saving.auto)

    def _auto(self, case: Case, seen: Verification, found: AutoLoading) -> Finding:
        what = f"loads {found.loaded}" if found.loaded else f"fails: {found.error}"
        return self.finding(
            "info",
            f"{found.auto_class} will not load this adapter folder as {found.model_class}: it "
            + (f"loads {found.loaded}." if found.loaded else "fails."),
            location=Location("recipe", "task_type"),
            evidence=(
                Measurement("class that was trained", found.model_class, case.structure.loaded_by),
                Measurement(f"{found.auto_class}.from_pretrained", what,
                        source(seen, "saved, loaded")),
            ),
            proof=Proof("executed", ("base model and adapters were saved and loaded with that "
                                    "class")),
            fixes=(
                Fix("Load it in two steps: the base model with "
                    f"{case.structure.loaded_by}.from_pretrained(...), then "
                    "PeftModel.from_pretrained(base, DIR).", "manual"),
            ),
        )  # fmt: skip
