"""LD402: float16 on a model whose numbers it may not hold."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.contract.half_precision import LARGEST, float16_keys
from lora_doctor.engine.case import Case
from lora_doctor.engine.rule import (
    REMOVE,
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
)
from lora_doctor.errors import EvidenceError
from lora_doctor.results.observations import ActivationReading
from lora_doctor.results.verification import Verification
from lora_doctor.text import quoted

#: From which share of the largest float16 number on the headroom is called small: other inputs,
#: scores of attention and the backward reach further than what is measured.
SMALL_HEADROOM = 0.25
_AFTERWARDS = (
    "starts-at-base", "loss-finite", "gradients", "steps", "adapters-move", "loss-falls",
    "save-reload", "merge",
)  # fmt: skip


class Float16Overflow(Rule):
    """The recipe computes in float16, which ends at 65504, and the model's numbers are, or may be,
    larger.

    ## What happens
    The first activation above 65504 becomes infinite and the next difference or softmax NaN. The
    loss is NaN from the first step or after some hundred, or is reported as 0 with `grad_norm nan`;
    under a gradient scaler every step is skipped and nothing is learnt.

    ## Why
    bfloat16 reaches as far as float32. A model that was trained in it has never had to stay below
    65504, and some do not: the outputs of Gemma 3's norms, the second feed-forward layer of T5. The
    classes of some models say which modules must stay in float32; `from_pretrained` obeys,
    `.half()` and the autocast of `fp16: true` do not.

    The largest output of each layer is measured where the weights are at hand: with `--depth
    full`, on a loaded model, on a factory's. Random weights are never large, so that elsewhere only
    the dtype of the checkpoint and what the classes say is evidence, and the finding says "may".
    Scores inside an attention kernel and the backward are not seen.

    ## Versions
    All.

    ## Fix
    bfloat16, which changes rounding and nothing else, or float32 on hardware without it; there,
    with too little memory, the modules that overflow in float32 and the others in float16. Clamping
    activations stops the NaN and costs accuracy: for Gemma 3, 0.75 became 0.66 on average.

    ## Links
    https://github.com/huggingface/transformers/pull/36832
    https://github.com/huggingface/transformers/issues/11461
    """

    code = "LD402"
    name = "float16-overflow"
    summary = "float16 on a model whose activations are, or may be, too large for it."
    depth = "static"
    symptoms = (
        Symptom(r"'?loss'?:\s*0\.0\b.*grad_norm'?:\s*nan"),
        Symptom(r"grad_norm'?:\s*nan"),
        Symptom(r"(?i)loss (is|=|:)\s*nan"),
        Symptom(r"(?i)exceed(s|ing)? float16'?s maximum"),
    )
    examples = (
        Example(
            "broken",
            "tests.models:overflowing_llama",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "float16"},
            why="measured in float32: one layer puts out more than 65504",
        ),
        Example(
            "broken",
            "arch:t5",
            {"target_modules": ["q", "v"], "fp16": True},
            why="autocast computes in float16 what the class keeps in float32",
        ),
        Example(
            "healthy",
            "tests.models:tiny_llama",
            {"target_modules": ["q_proj", "v_proj"], "dtype": "float16"},
            why="measured: nothing comes near",
        ),
        Example(
            "healthy",
            "arch:t5",
            {"target_modules": ["q", "v"], "bf16": True},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        keys = float16_keys(case.recipe)
        in_memory = case.source.kind in ("module", "factory")
        if not keys and not in_memory:
            return
        seen = case.verification if case.reaches("tiny") and case.has("verification") else None
        if not keys and (seen is None or seen.dtype != "float16"):
            return
        readings = seen.observations.activations if seen is not None else ()
        if seen is not None and seen.observations.user_weights and readings:
            yield from self._measured(case, keys, seen, readings)
            return
        lost = [item for item in readings if item.kept_in_float32 and item.dtype == "float16"]
        if seen is not None and lost:
            yield self._not_kept(case, keys, seen, lost)
            return
        yield from self._by_dtype(case, keys)

    def _measured(
        self,
        case: Case,
        keys: tuple[str, ...],
        seen: Verification,
        readings: tuple[ActivationReading, ...],
    ) -> Iterator[Finding]:
        first = next((item for item in readings if _overflows(item)), None)
        highest = max(readings, key=lambda item: item.max_abs)
        if first is None and highest.max_abs < SMALL_HEADROOM * LARGEST:
            return
        told = first or highest
        executed = first is not None and not first.finite
        severity: Severity = "error" if first is not None else "warning"
        number = f"{told.max_abs:.3g}"
        if first is None:
            message = f"{told.path} puts out {number}, close to 65504 where float16 ends: other "
            message += "inputs or the backward may overflow."
        elif executed:
            said = f" ({number} in float32)" if told.max_abs >= LARGEST else ""
            message = f"{told.path} puts out more than 65504{said}, which float16 cannot hold."
        else:
            message = f"{told.path} puts out {number}; float16 ends at 65504 and will overflow."
        source = f"largest absolute output in a training forward, {seen.depth} model"
        table = sorted(readings, key=lambda item: -item.max_abs)[:8]
        rows = [item for item in readings if item in table or item is told]
        evidence = [
            Measurement(f"{item.path or 'the model'} ({item.class_name}, {item.dtype})",
                    _share(item), source)
            for item in rows
        ]  # fmt: skip
        evidence += _asked(case, keys, seen)
        yield self.finding(
            severity,
            message,
            location=Location("module", told.path),
            evidence=tuple(evidence),
            proof=Proof("executed", "the numbers left float16 in a training forward")
            if executed
            else Proof("measured", "outputs of the user's own weights against 65504"),
            fixes=_fixes(case, keys, [told.path] if first is not None else []),
            explains=_AFTERWARDS if executed else (),
        )

    def _not_kept(
        self,
        case: Case,
        keys: tuple[str, ...],
        seen: Verification,
        lost: list[ActivationReading],
    ) -> Finding:
        source = f"dtype of the output, {seen.depth} model, executed"
        paths = [item.path for item in lost]
        evidence = [Measurement(item.path, "float16", source) for item in lost[:6]]
        evidence.append(
            Measurement("the model's class", "keeps them in float32", "_keep_in_fp32_modules")
        )
        return self.finding(
            "warning",
            f"{quoted(paths, 2)} compute in float16, which the model's own class keeps in float32 "
            "because they may overflow.",
            location=Location("module", paths[0]),
            evidence=(*evidence, *_asked(case, keys, seen)),
            proof=Proof("inferred", "the dtype was seen; with random weights nothing overflows"),
            fixes=_fixes(case, keys, paths),
        )

    def _by_dtype(self, case: Case, keys: tuple[str, ...]) -> Iterator[Finding]:
        native, where = _native_dtype(case)
        if native is None:
            raise EvidenceError(
                f"nothing is known of the weights of {case.source}: neither their dtype nor, "
                "without --depth full, how large the numbers get"
            )
        if native != "bfloat16" or not keys:
            return
        yield self.finding(
            "warning",
            "The weights are bfloat16 and the recipe computes in float16: what is larger than "
            "65504 may overflow.",
            location=Location("recipe", keys[0]),
            evidence=(
                Measurement("dtype of the weights", native, where),
                *_asked(case, keys, None),
            ),
            proof=Proof("inferred", "from the dtypes; --depth full measures the activations"),
            fixes=_fixes(case, keys, []),
        )


def _overflows(item: ActivationReading) -> bool:
    return not item.finite or item.max_abs >= LARGEST


def _share(item: ActivationReading) -> str:
    text = f"{item.max_abs:.3g}, {item.max_abs / LARGEST:.2g} of 65504"
    return text if item.finite else f"{text}; not finite in {item.dtype}"


def _asked(case: Case, keys: tuple[str, ...], seen: Verification | None) -> list[Measurement]:
    measures = [Measurement(key, case.recipe.get(key), "recipe") for key in keys]
    if not keys and seen is not None:
        measures.append(Measurement("dtype of the weights", seen.dtype, "the loaded model"))
    return measures


def _native_dtype(case: Case) -> tuple[str | None, str]:
    """The dtype in which the weights were published, and where that stands."""
    if case.has("static"):
        native = case.static.native_dtype
        if native is not None:
            return native[0].removeprefix("torch."), f"config.json, {native[1]}"
    if case.reaches("meta") and case.has("structure") and case.source.kind != "arch":
        return case.structure.native_dtype, "the model's config"
    return None, ""


def _fixes(case: Case, keys: tuple[str, ...], paths: list[str]) -> tuple[Fix, ...]:
    fixes = []
    if keys:
        fixes = [
            Fix("Compute in bfloat16.", "unsafe", tuple(_edits(case, keys, "bfloat16"))),
            Fix(
                "On hardware without bfloat16, compute in float32: twice the memory.",
                "unsafe",
                tuple(_edits(case, keys, "float32")),
            ),
        ]
    else:
        fixes = [Fix("Load the model in bfloat16, or float32 on hardware without it.", "manual")]
    if paths:
        fixes.append(
            Fix(
                f"With too little memory for that, keep {quoted(paths, 4)} in float32 and cast "
                "what goes in and comes out; from_pretrained does so for the modules that the "
                "class names, .half() does not.",
                "manual",
            )
        )
    return tuple(fixes)


def _edits(case: Case, keys: tuple[str, ...], wanted: str) -> Iterator[Edit]:
    for key in keys:
        if key != "fp16":
            yield Edit(key, wanted)
            continue
        yield Edit("fp16", REMOVE)
        if wanted == "bfloat16":
            yield Edit("bf16", True)
