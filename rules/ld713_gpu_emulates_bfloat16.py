"""LD713: the recipe computes in bfloat16, which the named GPU does not support natively."""

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
    bfloat16_keys,
    named_gpus,
)

_BFLOAT16 = {"target_modules": ["q_proj", "v_proj"], "dtype": "bfloat16"}


class GpuEmulatesBfloat16(Rule):
    """The recipe uses bfloat16 on a GPU without bfloat16 arithmetic.

    ## What happens
    Training is several times slower than in float16, or ends before the first step: `Your setup
    doesn't support bf16/gpu`.

    ## Why
    NVIDIA GPUs support bfloat16 from compute capability 8.0 (Ampere) on. On T4 and V100 torch
    converts to float32 and back around each operation.

    Only GPUs that are named (`gpu: t4`) are checked. With `gpu: cheapest`, GPUs without bfloat16
    are not considered.

    ## Versions
    All. If the installed torch counts emulation as support (`torch.cuda.is_bf16_supported`),
    training is slow; otherwise transformers refuses.

    ## Fix
    By hand: use a GPU of compute capability 8.0 or more, or float16, whose largest value is 65504
    (see `LD409`).

    ## Links
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions
    """

    code = "LD713"
    name = "gpu-emulates-bfloat16"
    summary = "The recipe computes in bfloat16, which the named GPU does not support natively."
    depth = "static"
    symptoms = (
        Symptom(r"Your setup doesn't support bf16/gpu\b.{0,40}\bAmpere"),
        Symptom(r"bf16 mixed precision requires PyTorch >= 1\.10 and a supported device"),
    )
    told_as = (
        "bf16 is slow on a T4 or V100, which does not support it.",
        "bf16 is not supported on my GPU, a V100 or T4.",
    )
    examples = (
        Example("broken", "arch:llama", {**_BFLOAT16, "gpu": ["t4"]}, depth="static"),
        Example("healthy", "arch:llama", {**_BFLOAT16, "gpu": ["l4"]}, depth="static"),
        Example(
            "healthy",
            "arch:llama",
            {**_BFLOAT16, "dtype": "float16", "gpu": ["v100-32gb"]},
            depth="static",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        keys = bfloat16_keys(case.recipe)
        for gpu in named_gpus(case.recipe.get("gpu")):
            if not keys or gpu.computes_bfloat16:
                continue
            capability = ".".join(map(str, gpu.capability))
            yield self.finding(
                "warning",
                f"The recipe computes in bfloat16 ({', '.join(keys)}), which {gpu.title} does "
                "not support natively: torch emulates it slowly, or refuses.",
                location=Location("recipe", keys[0]),
                evidence=(
                    *(Measurement(key, case.recipe.get(key), "recipe") for key in keys),
                    Measurement(
                        f"compute capability of {gpu.name}",
                        f"{capability}; bfloat16 needs 8.0",
                        "https://developer.nvidia.com/cuda-gpus",
                    ),
                ),
                proof=Proof("read", "from the vendor's specifications; no GPU was used"),
                fixes=(
                    Fix(
                        "Train on a GPU of compute capability 8.0 or more, or in float16, "
                        "whose largest value is 65504.",
                        "manual",
                    ),
                ),
            )
