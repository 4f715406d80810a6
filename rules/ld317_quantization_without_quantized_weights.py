"""LD317: config.json says that the checkpoint is quantized, and its weights are not."""

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
    excerpt,
    quoted,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import PlainWeights

#: How safetensors names dtypes in which no quantization stores the weights of its layers.
_FLOAT = frozenset({"F16", "BF16", "F32", "F64"})
_MATRIX = 2


class QuantizationWithoutQuantizedWeights(Rule):
    """The model's `config.json` has a `quantization_config`, but its weights are in floating point.

    ## What happens
    transformers takes the checkpoint for one that comes quantized, creates quantized layers and
    finds none of the tensors that belong to them. With bitsandbytes in transformers 5 loading goes
    through; then `get_peft_model` raises `'Parameter' object has no attribute
    'compress_statistics'`, or the first forward an `AssertionError` without a message. In
    transformers 4, `from_pretrained` raises `Cannot copy out of meta tensor`, or `Supplied state
    dict for ... does not contain bitsandbytes__*`.

    ## Why
    The weights were merged or converted to 16 bits, and `config.json` was taken from the quantized
    model; or a config was saved while the model was loaded in 4 bits.

    ## Versions
    Found by running: a tiny model of the class is saved in floating point and loaded with this
    `quantization_config` by the installed transformers. Where it loads such weights (and quantizes
    them), or where the quantization does not run on this machine, nothing is reported.

    ## Fix
    Remove `quantization_config` from `config.json` in a copy of the folder. To train in 4 bits, ask
    for them when loading: `load_in_4bit`.

    ## Links
    https://github.com/unslothai/unsloth/issues/1601,
    https://github.com/haotian-liu/LLaVA/issues/1266
    """

    code = "LD317"
    name = "quantization-without-quantized-weights"
    summary = "config.json says that the checkpoint is quantized, and its weights are not."
    depth = "tiny"
    symptoms = (
        Symptom(r"'Parameter' object has no attribute '(?:compress_statistics|CB)'"),
        Symptom(r"Supplied state dict for \S+ does not contain `?bitsandbytes__\*"),
    )
    examples = (
        Example(
            "broken",
            "tests/folders/bitsandbytes_config_plain_weights",
            {"target_modules": ["q_proj", "v_proj"]},
            {"transformers": ">=4.53"},
            why="weights merged in 16 bits beside the config of the quantized model",
        ),
        Example(
            "healthy",
            "tests/folders/bitsandbytes_4bit_weights",
            {"target_modules": ["q_proj", "v_proj"]},
            {"transformers": ">=4.53"},
        ),
        Example("healthy", "tests/folders/base_without_head", {"target_modules": ["q_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("static") or case.static.quantization_config is None:
            return
        if case.recipe.get("dequantize"):
            return
        dtypes = _dtypes_of_matrices(case)
        if not dtypes or not dtypes.keys() <= _FLOAT:
            return
        found = case.plain_weights
        if found.works:
            return
        matrices = sum(dtypes.values())
        yield self.finding(
            "error",
            f"config.json says that the weights are quantized with {found.method}, and all "
            f"{matrices} matrices in the checkpoint are in floating point: {_failure(found)}.",
            location=Location("file", "config.json"),
            evidence=(
                Measurement("quantization_config", found.method, case.static.where("config.json")),
                Measurement("matrices by dtype",
                            ", ".join(f"{n} {dtype}" for dtype, n in dtypes.items()),
                            "headers of the weights"),
                Measurement("floating-point weights, loaded with it", _failure(found),
                            "a tiny model of this class, installed transformers"),
            ),
            proof=Proof("executed", "a tiny model was saved in floating point and loaded with this "
                        "quantization_config; the same model, quantized by it, loads and runs"),
            fixes=(
                Fix("Remove quantization_config from config.json in a copy of the folder. To train "
                    "in 4 or 8 bits, ask for them when loading (load_in_4bit, load_in_8bit).",
                    "manual"),
            ),
            explains=("builds",),
        )  # fmt: skip


def _dtypes_of_matrices(case: Case) -> dict[str, int]:
    """How many matrices the checkpoint has of each dtype; empty where not all headers were read."""
    weights = case.static.weights.require()
    if weights.unread:
        return {}
    count: dict[str, int] = {}
    for tensor in weights.tensors.values():
        if len(tensor.shape) >= _MATRIX:
            count[tensor.dtype] = count.get(tensor.dtype, 0) + 1
    return count


def _failure(found: PlainWeights) -> str:
    """What happens, to be read after a colon."""
    if found.error is not None:
        return f"{found.raised_in} raises {excerpt(found.error)}"
    return f"weights stay random, such as {quoted(found.missing, 2)}"
