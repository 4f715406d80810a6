"""LD309: the checkpoint's quantization needs a missing package, or is not supported."""

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
from lora_doctor.rules import _checkpoint

if TYPE_CHECKING:
    from lora_doctor.rule_api import CheckpointQuantization, ErrorReport


class QuantizedCheckpointNotLoadable(Rule):
    """The checkpoint is quantized, and the installed transformers cannot load it: the package that
    implements its layers is missing or too old, or this release no longer or not yet supports the
    format.

    ## What happens
    `from_pretrained` raises `Loading a GPTQ quantized model requires optimum`, `Loading an AWQ
    quantized model requires gptqmodel`, `compressed-tensors>=0.15.0 is required`, or the first
    forward raises `finegrained-fp8 kernel unavailable`, if kernels are looked up only then. HQQ in
    transformers 5 raises nothing: the packed weights are reported as unexpected, the weights of the
    linear layers are missing and therefore random, and only a table in the log shows it.

    ## Why
    Each format needs its own package, and which one changes between releases: AWQ was loaded with
    autoawq up to transformers 4.57 and with gptqmodel in 5; GPTQ needs optimum in addition to
    gptqmodel; `kernels` is accepted only in a range of versions. A missing GPU is not reported: the
    quantizers are run as on a machine that has one.

    ## Versions
    All; the requirements are those of the installed release.

    ## Fix
    Install what the message names, in the environment you train in. FP8 without its kernels can be
    loaded in floating point.

    ## Links
    https://huggingface.co/docs/transformers/quantization/overview
    """

    code = "LD309"
    name = "quantized-checkpoint-not-loadable"
    summary = "The checkpoint's quantization needs a missing package, or is not supported."
    depth = "meta"
    symptoms = (
        Symptom(r"(Loading|Using) (an? )?.{1,40}quantiz.{1,60}requires?.{1,80}(pip )?install"),
        Symptom(
            r"\b[A-Z]\w+ quantization requires (?:the )?`?(?!a\b|an\b)\w+`?.{0,120}?"
            r"(?:pip install|>= ?\d)"
        ),
        Symptom(r"\bthe latest version of bitsandbytes\b"),
        Symptom(r"requires (optimum|gptqmodel|auto-awq|auto-round|AQLM|VPTQ|SpQR|FLUTE)\b"),
        Symptom(r"compressed[_-]tensors.{0,40} is (not installed|required)"),
        Symptom(r"finegrained-fp8 kernel unavailable"),
        Symptom(r"A valid HQQ version .{1,20} is not available"),
        Symptom(r"gptqmodel version should be >="),
        Symptom(r"kernels package is required for MXFP4|You need a version of auto_gptq >="),
        Symptom(r"No module named '(gptqmodel|auto_gptq|awq|aqlm|hqq|torchao|optimum\.gptq|vptq)"),
        Symptom(
            r"No package metadata was found for "
            r"(?:auto.?gptq|auto.?awq|gptqmodel|optimum|bitsandbytes|torchao|compressed.tensors)",
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/aqlm",
            {"target_modules": ["q_proj", "v_proj"]},
            {"transformers": ">=4.53"},
            why="AQLM, whose package nobody has by chance",
        ),
        Example(
            "healthy",
            "tests/folders/bitsandbytes_4bit",
            {"target_modules": ["q_proj", "v_proj"]},
            {"transformers": ">=4.53"},
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = _checkpoint.of(case)
        if found is None or found.dequantized or found.trainable is False:
            return  # LD308: no package makes it trainable
        if found.weights_dropped:
            yield self._dropped(found)
            return
        error = _error(found)
        if error is None:
            return
        runs_here = bool(found.falls_back_here)
        yield self.finding(
            "warning" if runs_here else "error",
            _message(found, runs_here),
            location=Location("environment", "installed packages"),
            evidence=(
                _checkpoint.method(found),
                Measurement("with a GPU", f"{error.type}: {error.message[:400]}", error.where),
                *_here(found),
            ),
            proof=Proof(
                "executed",
                ("the quantizer was created from the checkpoint's config, and raised this"),
            ),
            fixes=_fixes(case, found, error),
            explains=("builds",),
        )

    def _dropped(self, found: CheckpointQuantization) -> Finding:
        return self.finding(
            "error",
            f"The installed transformers does not load weights packed by {found.method}: the "
            "layers get random weights.",
            location=Location("environment", "installed packages"),
            evidence=(
                _checkpoint.method(found),
                Measurement("layers that the quantizer creates", 0, "full-size model"),
                Measurement("conversions of stored weights", 0, "get_weight_conversions()"),
            ),
            proof=Proof("measured", "the quantizer prepared the full-size model on the meta "
                                    "device, and no module in it accepts the packed weights"),
            fixes=(_checkpoint.without_quantization(found),),
            explains=("builds",),
        )  # fmt: skip


def _error(found: CheckpointQuantization) -> ErrorReport | None:
    """What it raises whatever the machine. An exception that speaks of a GPU says nothing of the
    packages."""
    error = found.error_with_gpu or found.layer_error
    if error is None or found.package_missing:
        return error
    here = found.error_here
    same = here is not None and (here.type, here.message) == (error.type, error.message)
    return error if same and "GPU" not in error.message and "XPU" not in error.message else None


def _message(found: CheckpointQuantization, runs_here: bool) -> str:
    where = " on a GPU" if runs_here else ""
    what = "needs a package that is missing" if found.package_missing else "is refused"
    return f"The checkpoint is quantized with {found.method}, which {what}{where}."


def _here(found: CheckpointQuantization) -> Iterator[Measurement]:
    if found.falls_back_here:
        yield Measurement("on this machine", found.falls_back_here[:300], "installed transformers")


def _fixes(case: Case, found: CheckpointQuantization, error: ErrorReport) -> tuple[Fix, ...]:
    command = _checkpoint.to_install(error.message)
    if not found.package_missing:
        return (_checkpoint.without_quantization(found),)
    install = Fix(f"{command}." if command else "Install what the message names.", "manual")
    other = _checkpoint.dequantizing(case, found) if found.error_with_gpu is None else None
    return (install,) if other is None else (install, other)
