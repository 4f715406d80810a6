"""LD316: adapters are merged into a checkpoint that comes quantized, and that is refused."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    framework_named,
    merges,
)
from lora_doctor.rules._round_trip import MERGED_HERE, quantized_merge
from lora_doctor.rules._set_up import located, written
from lora_doctor.static.installed.quantized_merging import lora_merges

#: Entries of a quantization_config with the layers that it leaves in floating point.
_LEFT = ("modules_to_not_convert", "ignore", "skip_modules", "linear_weights_not_to_quantize")


_READ = Proof("read", "the set-up, config.json and the source of the library were read")


@dataclass(frozen=True)
class _Refusal:
    """What PEFT raises when it merges, and how that is known. ``where``: only there, in words."""

    raised: str
    source: str
    proof: Proof = _READ
    where: str = ""


class MergedIntoQuantizedCheckpoint(Rule):
    """A script, or the export of a framework, merges adapters into the weights of a checkpoint that
    comes quantized (GPTQ, AWQ, AQLM, EETQ, FP8), and that is refused.

    ## What happens
    Training and loading work. `merge_and_unload` raises `NotImplementedError`, or `Merging LoRA
    layers is not supported`, or on FP8 `Promotion for Float8 Types is not supported`.
    LLaMA-Factory merges into no quantized checkpoint at all: `Cannot merge adapters to a quantized
    model`.

    ## Why
    Merging adds the update to the weight. These weights are integers with scales that were fitted
    to calibration data, and PEFT's layers for them have no merge. FP8 numbers cannot be added at
    all; on a machine that cannot run them, transformers loads floating point, which merges.

    ## Versions
    Depends on the installed PEFT: its LoRA layer for this quantization has no `merge`, or one that
    raises. A layer of the checkpoint's quantization is merged where it can be built here, and one
    of the trained tiny model where the backend runs here.

    ## Fix
    Merge into the model in floating point from which the checkpoint was quantized, and quantize the
    result anew. Or use the adapter unmerged, on the quantized checkpoint.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/quantization,
    https://github.com/huggingface/peft/pull/3055,
    https://github.com/huggingface/peft/issues/1853,
    https://github.com/hiyouga/LlamaFactory/issues/5625
    """

    code = "LD316"
    name = "merged-into-quantized-checkpoint"
    summary = "Adapters are merged into a quantized checkpoint, and that is refused."
    depth = "static"
    symptoms = (
        Symptom(r"Cannot merge adapters to a quantized model", "LLaMA-Factory"),
        Symptom(r"quantized model and does not support merge-lora", "ms-swift before 4"),
        Symptom(r"Merging LoRA layers is not supported for \w+ layers"),
        Symptom(
            r"Promotion for Float8 Types is not supported", raised_in=r"peft[\\/]tuners",
            context=r"\bmerge\w*\(",
        ),
        Symptom(
            r"NotImplementedError", raised_in=r"peft[\\/]tuners[\\/]tuners_utils\.py",
            context=r"\.merge\(|merge_and_unload",
        ),
    )  # fmt: skip
    examples = (
        Example(
            "broken",
            "tests/scripts/merged_into_aqlm.py",
            requires={"peft": ">=0.9"},
            depth="static",
            why="PEFT's layer for AQLM has no merge",
        ),
        Example(
            "broken",
            "tests/set_ups/llamafactory_export_quantized.yaml",
            depth="static",
            why="LLaMA-Factory asks for a model that is not quantized",
        ),
        Example(
            "broken",
            "tests/scripts/merged_into_fp8.py",
            requires={"transformers": ">=5.23", "peft": ">=0.18"},
            depth="meta",
            why="such numbers cannot be added",
        ),
        Example("healthy", "tests/scripts/merged_and_kept.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("static") or case.recipe.get("dequantize"):
            return
        config = case.static.quantization_config
        if config is None:
            return
        method = str(config.get("quant_method", ""))
        if case.has("set_up"):
            yield from self._of_framework(case, method, config)
        elif case.has("program"):
            yield from self._of_script(case, method, config)

    def _of_script(self, case: Case, method: str, config: Mapping[str, Any]) -> Iterator[Finding]:
        refusal = _refusal(case, method, config)
        if refusal is None:
            return
        error = getattr(builtins, refusal.raised.partition(":")[0], Exception)
        merge = next(merges(case.program, error), None)
        if merge is None:
            return
        yield self._found(
            f"{merge.code} will fail{refusal.where}: PEFT cannot merge {case.recipe.peft_type} "
            f"adapters into the {method} layers of this checkpoint ({refusal.raised}).",
            Location("file", merge.place.file, merge.place.line),
            (
                Measurement("the call", merge.code, str(merge.place)),
                Measurement("adapters added", merge.other_code, str(merge.other_place)),
                Measurement("quantization of the checkpoint", method, "config.json"),
                Measurement("merging raises", refusal.raised, refusal.source),
            ),
            refusal.proof,
        )

    def _of_framework(
        self, case: Case, method: str, config: Mapping[str, Any]
    ) -> Iterator[Finding]:
        set_up = case.set_up
        framework = framework_named(set_up.format)
        entry = framework.merges(set_up.entries)
        if entry is None:
            return
        raised = framework.refuses_quantized
        if not raised:
            refusal = _refusal(case, method, config)
            raised = refusal.raised if refusal is not None else ""
        if not raised:
            return
        yield self._found(
            f"The export will fail: adapters cannot be merged into this checkpoint, which is "
            f"quantized with {method or 'an unnamed method'} ({raised}).",
            located(set_up, entry),
            (
                written(set_up, entry),
                written(set_up, framework.model),
                Measurement("quantization of the checkpoint", method, "config.json"),
                Measurement("merging raises", raised, f"source of {set_up.format} and PEFT"),
            ),
        )

    def _found(
        self,
        message: str,
        location: Location,
        evidence: tuple[Measurement, ...],
        proof: Proof = _READ,
    ) -> Finding:
        return self.finding(
            "error",
            message,
            location=location,
            evidence=evidence,
            proof=proof,
            fixes=(
                Fix(
                    "Merge into the model in floating point from which this checkpoint was "
                    "quantized, and quantize the result; or use the adapter unmerged.",
                    "manual",
                ),
            ),
        )


def _refusal(case: Case, method: str, config: Mapping[str, Any]) -> _Refusal | None:
    """Why merging into such layers fails; ``None`` where PEFT merges, is not known to refuse, or
    adapts no such layer."""
    merging = lora_merges(method) if case.recipe.peft_type == "LORA" else None
    if merging is not None:
        targets = case.recipe.get("target_modules")
        left = {str(name).split(".")[-1] for key in _LEFT for name in config.get(key) or ()}
        only_left = isinstance(targets, list) and bool(targets) and left.issuperset(targets)
        if merging[0] == "no":
            return None if only_left else _Refusal(merging[1], "installed PEFT, its source")
    return _of_a_layer(case) or _of_the_trained(case)


def _of_a_layer(case: Case) -> _Refusal | None:
    """By a layer of the checkpoint's quantization, built and merged."""
    if not case.reaches("meta") or not case.has("checkpoint_quantization"):
        return None
    found = case.checkpoint_quantization
    error = found.merging_error
    if error is None or not found.stays:
        return None
    how = "the quantizer replaced the layers, and an adapter was merged into one on the CPU"
    where = " on a GPU that runs them" if found.falls_back_here else ""
    text = f"{error.type}: {error.message[:200]}"
    return _Refusal(text, "a layer, merged here", Proof("executed", how), where)


def _of_the_trained(case: Case) -> _Refusal | None:
    """By a layer of the tiny model that was quantized and trained here."""
    tried = quantized_merge(case)
    if tried is None or tried.error is None:
        return None
    text = f"{tried.error.type}: {tried.error.message[:200]}"
    return _Refusal(text, MERGED_HERE, Proof("executed", MERGED_HERE))
