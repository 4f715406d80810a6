"""LD402: activations too large for float16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    LARGEST_FLOAT16,
    Case,
    EvidenceError,
    Example,
    Finding,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
    Symptom,
)
from lora_doctor.rules._float16 import chosen_by, computes_in_float16, wider_dtypes
from lora_doctor.rules._user_weights import observed

if TYPE_CHECKING:
    from lora_doctor.rule_api import ActivationReading

#: From which share of the largest float16 number on the headroom is called small: other inputs,
#: scores of attention and the backward reach further than what is measured.
SMALL_HEADROOM = 0.25
_AFTERWARDS = (
    "starts-at-base", "loss-finite", "gradients", "steps", "adapters-move", "loss-falls",
    "save-reload", "merge",
)  # fmt: skip
#: A scaler skips the first steps, and those that follow have a norm: no number after it.
_TO_THE_END = r"(?!.{0,5000}?grad_norm'?:\s*'?\d)"


class Float16Overflow(Rule):
    """The recipe computes in float16, whose largest value is 65504, and activations of the model
    exceed it or come close to it.

    ## What happens
    The first activation above 65504 becomes inf, and the next subtraction or softmax NaN. The loss
    is NaN from the first step or after a few hundred, or is reported as 0 with `grad_norm nan`;
    with a gradient scaler every step is skipped and the model learns nothing.

    ## Why
    bfloat16 has the range of float32. A model that was trained in it never had to stay below 65504,
    and some do not: the outputs of Gemma 3's norms, the second feed-forward layer of T5.

    The largest output of each layer is measured where real weights are available: with `--depth
    full`, on a loaded model, on the model of a factory. The random weights of a tiny model never
    give large outputs; without real weights, `LD408` reports what the model's class keeps in
    float32, and `LD409` the dtype of the checkpoint. Scores inside an attention kernel and values
    in the backward are not measured.

    ## Versions
    All.

    ## Fix
    bfloat16, which changes only rounding, or float32 on hardware without bfloat16. If that takes
    too much memory: float32 for the modules that overflow and float16 for the others. Clamping
    activations stops the NaN but costs accuracy: for Gemma 3, 0.75 became 0.66 on average.

    ## Links
    https://github.com/huggingface/transformers/pull/36832
    https://github.com/huggingface/transformers/issues/11461
    """

    code = "LD402"
    name = "float16-overflow"
    summary = "float16 on a model whose measured activations are too large for it."
    depth = "tiny"
    symptoms = (
        Symptom(rf"'?loss'?:\s*'?0(?:\.0+)?'?,.{{0,20}}grad_norm'?:\s*'?nan\b{_TO_THE_END}"),
        Symptom(rf"grad_norm'?:\s*'?nan\b{_TO_THE_END}", "quoted by transformers 5"),
        Symptom(r"(?i)(?<!no )loss\w*['\"]?\s*(?:is|=|:|->)?\s*(?:all\s|always\s)?['\"]?nan\b"),
        Symptom(r"(?i)(?<!no )\bnan (?:in|as|for) (?:the )?(?:training )?loss"),
        Symptom(r"(?i)exceed(s|ing)? float16'?s maximum"),
        Symptom(
            r"probability tensor contains either `inf`, `nan` or element < 0",
            "sampling from a model that overflows",
            context=r"(?i)\b(?:fp16|float16|half)\b|torch\.float16",
        ),
        Symptom(r"(?i)\b(?:fp16|float16)\W{0,3}overflow|\bexceed\w*.{0,40}\b65,?504\b"),
    )
    descriptions = (
        Symptom(r"\bgrad\w*[_ ]norm\W+(?:(?:is|was|always|becomes?)\W+){0,3}(?:nan|inf)\b"),
        Symptom(
            r"\b(?:fp16|float16|half precision)\b.{0,60}\b(?:overflow|infinite|nans?"
            r"|loss (?:is )?(?:0|zero))\b"
        ),
        Symptom(r"\b(?:overflow\w*|nans?)\b.{0,60}\b(?:fp16|float16|half precision)\b"),
        Symptom(r"\b(?:loss|gradients?)\b.{0,40}\b(?:nan|becomes? nan|turns? nan|infinite)\b"),
        Symptom(r"\A(?=.*\b(?:fp16|float16)\b)(?=.*\bloss\b.{0,12}\b(?:0|zero|nan)\b(?!\.?\d)).+"),
    )
    told_as = (
        "The loss is NaN in fp16.",
        "The loss becomes zero in half precision, in bf16 it trains.",
        "The loss suddenly drops to 0.",
    )
    examples = (
        Example(
            "broken",
            "tests.models:overflowing_llama",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "float16"},
            why="measured in float32: one layer puts out more than 65504",
        ),
        Example(
            "healthy",
            "tests.models:tiny_llama",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "float16"},
            why="measured: nothing comes near",
        ),
        Example(
            "healthy",
            "tests.models:overflowing_llama",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "bfloat16"},
            why="the same layer, in a dtype that reaches further",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not computes_in_float16(case):
            return
        readings = observed(case).activations
        if not readings:
            raise EvidenceError("the run stopped before the output of a layer was measured")
        first = next((item for item in readings if _overflows(item)), None)
        highest = max(readings, key=lambda item: item.max_abs)
        if first is None and highest.max_abs < SMALL_HEADROOM * LARGEST_FLOAT16:
            return
        shown = first or highest
        executed = first is not None and not first.finite
        severity: Severity = "error" if first is not None else "warning"
        run = case.verification
        source = f"largest absolute output in a training forward, {run.depth} model"
        evidence = [
            Measurement(f"{item.path or 'the model'} ({item.class_name}, {item.dtype})",
                        _share(item), source)
            for item in _table(readings, shown)
        ]  # fmt: skip
        yield self.finding(
            severity,
            _message(shown),
            location=Location("module", shown.path),
            evidence=(*evidence, *chosen_by(case, run)),
            proof=Proof(
                "executed", ("activations exceeded the range of float16 in a training forward")
            )
            if executed
            else Proof("measured", "outputs with the user's own weights, compared with 65504"),
            fixes=wider_dtypes(case, [shown.path] if first is not None else []),
            explains=_AFTERWARDS if executed else (),
        )


def _message(shown: ActivationReading) -> str:
    largest = f"{shown.max_abs:.3g}"
    if not _overflows(shown):
        return (
            f"{shown.path} outputs values up to {largest}, close to 65504, the largest of "
            "float16: other inputs or the backward may overflow."
        )
    if not shown.finite:
        measured = f" ({largest} in float32)" if shown.max_abs >= LARGEST_FLOAT16 else ""
        return f"{shown.path} outputs values above 65504{measured}, the largest of float16."
    return f"{shown.path} outputs values up to {largest}; float16 overflows above 65504."


def _table(
    readings: Sequence[ActivationReading], shown: ActivationReading
) -> list[ActivationReading]:
    """The eight layers with the largest output and the one that the message names, in the order
    of the forward."""
    largest = sorted(readings, key=lambda item: -item.max_abs)[:8]
    return [item for item in readings if item in largest or item is shown]


def _overflows(item: ActivationReading) -> bool:
    return not item.finite or item.max_abs >= LARGEST_FLOAT16


def _share(item: ActivationReading) -> str:
    share = f"{item.max_abs:.3g} ({item.max_abs / LARGEST_FLOAT16:.2g} x 65504)"
    return share if item.finite else f"{share}; not finite in {item.dtype}"
