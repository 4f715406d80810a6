"""LD327: a method or an initialisation reads weights that are packed in 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    Edit,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._ablation import with_edits
from lora_doctor.rules._prompt_learning import METHODS

if TYPE_CHECKING:
    from lora_doctor.rule_api import Verification

#: Where reading a packed weight shows.
_FIRST = ("attaches", "forward", "starts-at-base", "loss-finite", "gradients")
#: Without quantization.
_FLOAT = (Edit("load_in_4bit", False), Edit("load_in_8bit", False))
#: Settings of LoRA that read the weights, and the edit that takes each out.
_PLAIN = {"init_lora_weights": Edit("init_lora_weights", True), "use_dora": Edit("use_dora", False)}


class MethodReadsQuantizedWeights(Rule):
    """The adapter's method, or its initialisation, computes with the weights of the base model, and
    the recipe loads them in 4 or 8 bits.

    ## What happens
    `get_peft_model` raises `Please initialize PiSSA under float32, float16, or bfloat16`, `PSOFT
    init requires float32/float16/bfloat16` or `Only Tensors of floating point and complex dtype can
    require gradients`; or the first forward of LoHa, LoKr or HRA raises `mat1 and mat2 shapes
    cannot be multiplied` with one dimension of 1.

    ## Why
    4-bit weights are packed, two in a byte, in a matrix of one column. A method that decomposes,
    rotates or adds to the weight needs its numbers. PEFT has layers for quantized weights for some
    methods only; the others treat the packed bytes as the weight.

    ## Versions
    Depends on the installed PEFT; the quantized model was run, and the same without quantization.

    ## Fix
    Initialise LoRA without the weights (`init_lora_weights: true`), or load the model without
    quantization. PiSSA can be prepared on the model in floating point, saved as base model and
    adapter, and the base then loaded in 4 bits. All of them change memory or what is trained, so
    they are applied only with `--unsafe-fixes`.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/quantization
    """

    code = "LD327"
    name = "method-reads-quantized-weights"
    summary = "The adapter's method or initialisation reads weights that are in 4 or 8 bits."
    depth = "tiny"
    symptoms = (
        Symptom(r"Please initialize (?:PiSSA|OLoRA|CorDA|MiCA|LoRA-GA) under float32"),
        Symptom(r"LoRA-GA does not support quantized models"),
        Symptom(r"(?:8bit and 4bit|GPTQ) quantization not supported for"),
        Symptom(r"4-bit quantization is not supported for IA3 yet", "PEFT 0.4"),
        Symptom(r"PSOFT init requires float32/float16/bfloat16"),
        Symptom(r"linalg\.\w+: Expected a floating point or complex tensor as input\. Got Byte",
                raised_in=r"peft[\\/]tuners"),
        Symptom(r"mat1 and mat2 shapes cannot be multiplied \(\d{4,}x1 and",
                raised_in=r"peft[\\/]tuners"),
        Symptom(r"shape '\[\d+, 1\]' is invalid for input of size", raised_in=r"peft[\\/]tuners"),
    )  # fmt: skip
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj"], "init_lora_weights": "pissa", "load_in_4bit": True},
            {"transformers": ">=4.53", "peft": ">=0.10"},
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj"], "init_lora_weights": "olora", "load_in_4bit": True},
            {"transformers": ">=4.53", "peft": ">=0.15"},
            why="which dequantizes the weight, and quantizes it again",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        kind, method = case.recipe.quantized, case.recipe.peft_type
        if kind is None or method in METHODS or not case.structure.injection.ok:
            return
        failed = case.unexplained
        key = _suspect(case)
        if key is None or not failed or failed[0] not in _FIRST:
            return
        seen = case.verification
        if with_edits(case, _FLOAT).outcome != "passed":
            raise EvidenceError("the same recipe fails without quantization as well")
        plain = _PLAIN.get(key)
        if plain and with_edits(case, (plain,)).outcome != "passed":
            raise EvidenceError(f"quantized, the recipe fails without {key} as well")
        yield self._finding(case, seen, key, failed)

    def _finding(
        self, case: Case, seen: Verification, key: str, failed: tuple[str, ...]
    ) -> Finding:
        bits = str(case.recipe.quantized).removesuffix("bit")
        what = method = case.recipe.peft_type
        if key in _PLAIN:
            what = f"{key}: {case.recipe.get(key)}"
        check, failure = seen.check(failed[0]), seen.failure
        said = str(check.detail or check.value) if check else failed[0]
        if failure is not None and failure.check in failed:
            said = f"{failure.type}: {failure.message[:300]}"
        source = f"{seen.depth} model, executed"
        lines = [
            Measurement(f"in {bits} bits", said, source),
            Measurement("without quantization", "the contract passed", source),
        ]
        fixes = [
            Fix(f"Load the model without quantization; {method} then works.", "unsafe", _FLOAT)
        ]
        if key in _PLAIN:
            lines.append(
                Measurement(f"in {bits} bits without {key}", "the contract passed", source)
            )
            title = f"Set {key} to {str(_PLAIN[key].value).lower()}: other initial values."
            fixes.insert(0, Fix(title, "unsafe", (_PLAIN[key],)))
        return self.finding(
            "error",
            f"{what} computes with the weights of the base model, which are loaded in {bits} bits: "
            f"{said[:200]}",
            location=Location("recipe", key),
            evidence=tuple(lines),
            proof=Proof("executed", "the model was run quantized, and again without quantization"),
            fixes=tuple(fixes),
            explains=failed,
        )


def _suspect(case: Case) -> str | None:
    """The key that may make the adapter read weights."""
    if case.recipe.peft_type != "LORA":
        return "peft_type"
    if isinstance(case.recipe.get("init_lora_weights"), str):
        return "init_lora_weights"
    return "use_dora" if case.recipe.get("use_dora") else None
