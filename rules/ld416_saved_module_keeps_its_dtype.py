"""LD416: a module saved with an adapter is loaded in the dtype of the file, not the model's."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Rule,
    Symptom,
    loaded_sparingly,
    quoted,
)
from lora_doctor.rules._saved_adapter import loaded


class SavedModuleKeepsItsDtype(Rule):
    """An adapter with whole modules (`modules_to_save`) is loaded with `low_cpu_mem_usage=True`
    onto a model in another dtype.

    ## What happens
    The first forward raises `expected m1 and m2 to have the same dtype`, or `mat1 and mat2 must
    have the same dtype`. Without the argument, and under autocast, it works.

    ## Why
    With `low_cpu_mem_usage` PEFT puts the tensors of the file into the model instead of copying
    their numbers. It casts those of the adapters afterwards, and not those of whole modules: a head
    that was trained in float32 stays float32 in a bfloat16 model.

    ## Versions
    PEFT 0.13 and later; the installed release loaded the adapter's header.

    ## Fix
    By hand: take `low_cpu_mem_usage` out. It saves little where an adapter is loaded.

    ## Links
    https://github.com/huggingface/peft/pull/3509
    """

    code = "LD416"
    name = "saved-module-keeps-its-dtype"
    summary = "A module saved with an adapter stays in the dtype of the file, not the model's."
    depth = "meta"
    about_saved_adapter = True
    symptoms = (
        Symptom(
            r"(?:expected m1 and m2|mat1 and mat2 must|expected scalar type).{0,80}",
            context=r"low_cpu_mem_usage\s*=\s*True",
        ),
    )
    descriptions = (
        Symptom(r"\blow_cpu_mem_usage\b.{0,120}\bmodules_to_save\b.{0,120}\bdtypes?\b"),
        Symptom(r"\bmodules_to_save\b.{0,120}\bdtypes?\b.{0,120}\blow_cpu_mem_usage\b"),
    )
    examples = (
        Example(
            "broken",
            "tests.saved_adapters:head_in_float32",
            loaded=True,
            depth="meta",
            requires={"peft": ">=0.13", "transformers": ">=4.56"},
        ),
        Example(
            "healthy",
            "tests.saved_adapters:head_in_the_dtype_of_the_model",
            loaded=True,
            depth="meta",
            requires={"peft": ">=0.13", "transformers": ">=4.56"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        call = loaded_sparingly(case.program) if case.has("program") else None
        if call is None or case.recipe.mixed_precision:
            return
        loading = case.adapter_loading
        failing = [one for one in loading.landing.kept_dtypes if one.raises]
        if not failing:
            return
        first = failing[0]
        yield self.finding(
            "error",
            f"low_cpu_mem_usage=True leaves {quoted([one.module for one in failing], 3)} in "
            f"{first.dtype}, and the model is in {first.of_base}: the first forward fails.",
            location=Location("file", call.place.file, call.place.line),
            evidence=(
                Measurement("low_cpu_mem_usage", True, str(call.place)),
                *(
                    Measurement(
                        f"{one.module} ({one.class_name})",
                        f"{one.dtype}; the model's is {one.of_base}",
                        "PeftModel.from_pretrained with low_cpu_mem_usage",
                    )
                    for one in failing[:3]
                ),
                Measurement("a small layer of these dtypes raises", first.raises, "run on the CPU"),
            ),
            proof=loaded(loading),
            fixes=(Fix("Take low_cpu_mem_usage out of the call.", "manual"),),
        )
