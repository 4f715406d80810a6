"""LD419: flash attention is requested, and its package is not installed."""

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
)
from lora_doctor.rules._attention import KEY
from lora_doctor.static.installed.environment import installed_version, package_folder

_TARGETS = {"target_modules": ["q_proj", "v_proj"]}
#: Each implementation to the distribution, and the module, that transformers looks for.
_PACKAGES = {
    "flash_attention_2": ("flash-attn", "flash_attn"),
    "flash_attention_3": ("flash-attn-3", "flash_attn_3"),
}


class FlashAttentionNotInstalled(Rule):
    """The recipe requests flash attention, and the environment does not have the package.

    ## What happens
    Loading ends at `ImportError: FlashAttention2 has been toggled on, but it cannot be used due to
    the following error: the package for FlashAttention2 doesn't seem to be installed`, or the
    package is too old for the installed transformers.

    ## Why
    flash-attn is a requirement of no other package: it is compiled for one release of torch and
    CUDA. transformers 5 takes the kernel from the hub instead where `kernels` is installed.

    An error where torch is built for a GPU. A CPU build of torch is not what the model will be
    trained with, and says nothing of the other environment: there it is an info.

    ## Versions
    All versions of transformers.

    ## Fix
    `pip install flash-attn --no-build-isolation`, or no `attn_implementation`: transformers then
    uses the attention of torch.

    ## Links
    https://github.com/Dao-AILab/flash-attention#installation-and-features
    """

    code = "LD419"
    name = "flash-attention-not-installed"
    summary = "Flash attention is requested, and its package is not installed."
    depth = "static"
    symptoms = (
        Symptom(r"Flash ?Attention ?\d?(?:\.0)? has been toggled on, but it cannot be used due to"),
        Symptom(r"Flash ?Attention-?2?(?:\.0)? is not installed", aside=True),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {**_TARGETS, KEY: "flash_attention_2", "dtype": "bfloat16"},
            depth="static",
            why="no stack of the tests has the package",
        ),
        Example("healthy", "arch:llama", {**_TARGETS, KEY: "sdpa"}, depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        asked = case.recipe.get(KEY)
        distribution, module = _PACKAGES.get(str(asked), ("", ""))
        if not module or package_folder(module) is not None or _from_the_hub(case):
            return
        torch = case.environment.version("torch")
        trains_here = _is_for_a_gpu(torch)
        where = "in this environment" if trains_here else "where the model is trained"
        yield self.finding(
            "error" if trains_here else "info",
            f"{asked} needs {distribution}, which is not installed: transformers raises ImportError"
            f"{'' if trains_here else ' if the training environment lacks it as well'}.",
            location=Location("recipe", KEY),
            evidence=(
                Measurement(KEY, str(asked), "recipe"),
                Measurement(distribution, "not installed", "installed packages"),
                Measurement("torch", torch or "not installed", "installed packages"),
            ),
            proof=Proof("inferred", "from the packages that are installed; nothing was loaded"),
            fixes=(
                Fix(f"Install {distribution} {where}.", "manual"),
                Fix(
                    f"Leave the choice to transformers: remove {KEY}.",
                    "unsafe",
                    (Edit(KEY, REMOVE),),
                ),
            ),
        )


def _from_the_hub(case: Case) -> bool:
    """Whether transformers takes the kernel from the hub instead."""
    major = (case.environment.version("transformers") or "").partition(".")[0]
    return major.isdigit() and int(major) >= 5 and package_folder("kernels") is not None


def _is_for_a_gpu(version: str | None) -> bool:
    """Whether this build of torch is one for NVIDIA or AMD GPUs."""
    if version is None or "+cpu" in version:
        return False
    if "+cu" in version or "+rocm" in version:
        return True
    runtimes = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu11")
    return any(installed_version(name) is not None for name in runtimes)
