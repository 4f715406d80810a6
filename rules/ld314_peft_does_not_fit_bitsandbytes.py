"""LD314: the installed PEFT cannot adapt the layers of the installed bitsandbytes."""

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


class PeftDoesNotFitBitsandbytes(Rule):
    """The recipe loads the model in 4 or 8 bits, and the installed PEFT raises on a layer of the
    installed bitsandbytes.

    ## What happens
    `get_peft_model` ends at `'MatmulLtState' object has no attribute 'memory_efficient_backward'`,
    on every model. Without a GPU transformers does not load the model in 8 bits, so the failure
    shows only once a GPU has been booked.

    ## Why
    PEFT reads internals of bitsandbytes' layers to wrap them, and each release supports the
    bitsandbytes of its time.

    ## Versions
    PEFT 0.7 with bitsandbytes 0.45 and later, in 8 bits. The installed pair is run: one layer is
    created and adapted, which needs no GPU.

    ## Fix
    A newer PEFT, or a bitsandbytes of the same age as the installed PEFT.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/quantization
    """

    code = "LD314"
    name = "peft-does-not-fit-bitsandbytes"
    summary = "PEFT raises on every layer of the installed bitsandbytes."
    depth = "meta"
    symptoms = (
        Symptom(r"'MatmulLtState' object has no attribute '\w+'"),
        Symptom(r"'(Linear8bitLt|Linear4bit|Params4bit|Int8Params)' object has no attribute '\w+'",
                raised_in=r"peft[\\/]tuners"),
    )  # fmt: skip
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "load_in_8bit": True},
            requires={"peft": "<0.8", "bitsandbytes": ">=0.45"},
            depth="meta",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "load_in_8bit": True},
            requires={"peft": ">=0.18", "bitsandbytes": ">=0.45"},
            depth="meta",
        ),
        Example(
            "healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"], "load_in_4bit": True},
            depth="meta",
        ),
        Example(
            "healthy",
            "arch:gpt2",
            {"peft_type": "LN_TUNING", "target_modules": ["ln_1"], "load_in_8bit": True},
            requires={"peft": ">=0.10"},
            depth="meta",
            why="the norms are not quantized",
        ),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        error = case.structure.bitsandbytes_refusal
        if error is None or not case.structure.injection.ok:
            return  # what it refuses on plain layers is another matter
        versions = ", ".join(
            f"{name} {case.environment.version(name)}" for name in ("peft", "bitsandbytes")
        )
        kind = (case.recipe.quantized or "").replace("bit", "-bit")
        yield self.finding(
            "error",
            f"PEFT cannot put adapters on the {kind} layers of this bitsandbytes: {error}.",
            location=Location("environment", versions),
            evidence=(
                Measurement("one layer, adapted", str(error), f"{versions}; {error.where}"),
            ),
            proof=Proof("executed", "PEFT was run on one such layer, on the CPU, not quantized"),
            fixes=(
                Fix("pip install --upgrade peft", "manual"),
                Fix("Or install a bitsandbytes of the same age as this PEFT, or leave "
                    "load_in_8bit and load_in_4bit out.", "manual"),
            ),
            explains=("attaches",),
        )  # fmt: skip
