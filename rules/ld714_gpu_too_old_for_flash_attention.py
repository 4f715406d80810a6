"""LD714: flash attention is requested, and the named GPU is too old for it."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    REMOVE,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    named_gpus,
)
from lora_doctor.rules._attention import KEY

_FLASH = {"target_modules": ["q_proj", "v_proj"], "dtype": "float16", KEY: "flash_attention_2"}
_NEEDS = (8, 0)


class GpuTooOldForFlashAttention(Rule):
    """The recipe uses flash attention on a GPU for which there is no kernel.

    ## What happens
    The first step ends at `RuntimeError: FlashAttention only supports Ampere GPUs or newer`.

    ## Why
    FlashAttention 2 needs compute capability 8.0 or more. Only GPUs that are named (`gpu: t4`) are
    checked.

    ## Versions
    All of FlashAttention 2.

    ## Fix
    Leave the choice to transformers, which then uses PyTorch's own kernels.

    ## Links
    https://github.com/Dao-AILab/flash-attention#nvidia-cuda-support
    """

    code = "LD714"
    name = "gpu-too-old-for-flash-attention"
    summary = "Flash attention is requested, and the named GPU is too old for it."
    depth = "static"
    symptoms = (
        Symptom(r"FlashAttention only supports Ampere GPUs or newer"),
        Symptom(r"Flash ?Attention.{0,3} requires compute capability"),
    )
    told_as = ("Flash attention does not work on my GPU, a V100 or T4.",)
    examples = (
        Example("broken", "arch:llama", {**_FLASH, "gpu": ["t4"]}, depth="static"),
        Example("healthy", "arch:llama", {**_FLASH, "gpu": ["l4"]}, depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        asked = case.recipe.get(KEY)
        if not isinstance(asked, str) or not asked.startswith("flash_attention"):
            return
        for gpu in named_gpus(case.recipe.get("gpu")):
            if gpu.capability >= _NEEDS:
                continue
            capability = ".".join(map(str, gpu.capability))
            yield self.finding(
                "error",
                f"{asked} has no kernel for {gpu.title}: the first step fails there.",
                location=Location("recipe", KEY),
                evidence=(
                    Measurement(KEY, asked, "recipe"),
                    Measurement(
                        f"compute capability of {gpu.name}",
                        f"{capability}; flash attention needs 8.0",
                        "https://developer.nvidia.com/cuda-gpus",
                    ),
                ),
                proof=Proof("read", "from the vendor's specifications; no GPU was used"),
                fixes=(
                    Fix(f"Leave the choice to transformers: remove {KEY}.", "unsafe",
                        (Edit(KEY, REMOVE),)),
                ),
            )  # fmt: skip
