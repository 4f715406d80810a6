"""LD313: 4-bit or 8-bit loading leaves most of the model unquantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
    framework_named,
    gib,
    quoted,
)
from lora_doctor.rules._quantized import in_bits

if TYPE_CHECKING:
    from lora_doctor.rule_api import KeptWeights, Quantization

#: Less than this share of the weights outside of embeddings and the head is worth a word. Of most
#: models nine in ten are quantized, of T5, whose class keeps a third in floating point, 71%.
_LEAST = 0.6
_BITS = {"4bit": 4, "8bit": 8}
_WORDS = {
    "skipped": "skipped by a skip list",
    "parameter": "parameters, not layers",
    "convolution": "convolutions",
    "other": "not treated as linear layers",
}


class MuchLeftInFullPrecision(Rule):
    """The recipe loads in 4 or 8 bits, and most of the weights are in modules that bitsandbytes
    does not quantize.

    ## What happens
    Loading and training work, but take far more memory than planned: 4-bit loading of Mixtral
    quantizes 3% of it in transformers 5, and 90 GB of experts stay in 16 bits.

    ## Why
    transformers replaces linear layers (and `Conv1D`) by layers of bitsandbytes, one by one. Not
    replaced are experts that are fused into one three-dimensional parameter, convolutions, in newer
    releases classes that inherit from `nn.Linear` (Falcon's), and everything in
    `llm_int8_skip_modules` or in the class's own list.

    ## Versions
    Fused experts: some classes always (GPT-OSS, DBRX), most mixtures of experts since transformers
    5, which fuses what version 4 kept as linear layers.

    ## Fix
    Plan with the size that is shown. If it does not fit: several GPUs, a checkpoint whose experts
    are stored quantized, a release of transformers in which the experts are linear layers, or a
    shorter skip list.

    ## Links
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
    https://huggingface.co/docs/transformers/experts_interface
    """

    code = "LD313"
    name = "much-left-in-full-precision"
    summary = "4-bit or 8-bit loading leaves most of the model unquantized."
    depth = "meta"
    about_training = True
    descriptions = (
        Symptom(
            r"\bexperts?\b.{0,80}\b(?:full precision|not quantized|unquantized"
            r"|stay in (?:bf16|bfloat16|fp16|16)|skipped by (?:bitsandbytes|quantiz))"
        ),
        Symptom(
            r"(?<!\d)[48].?bit\b.{0,80}\b(?:(?:as much|more|the same) (?:\w+ )?memory"
            r"|still in (?:bf16|bfloat16|fp16|full))"
        ),
    )
    told_as = (
        "The model in 4 bit takes as much memory as in 16 bit.",
        "QLoRA needs more memory than LoRA.",
    )
    examples = (
        Example(
            "broken",
            "arch:mixtral",
            {"target_modules": ["q_proj", "v_proj"], "load_in_4bit": True},
            {"transformers": ">=5"},
            depth="meta",
            why="the experts of a layer are one parameter",
        ),
        Example(
            "broken",
            "arch:gpt_oss",
            {"target_modules": ["q_proj", "v_proj"], "load_in_8bit": True},
            {"transformers": ">=5"},
            depth="meta",
        ),
        Example(
            "broken",
            "arch:falcon",
            {"target_modules": ["query_key_value"], "load_in_4bit": True},
            {"transformers": ">=5.24"},
            depth="meta",
            why="its linear layers are of a class of their own",
        ),
        Example(
            "broken",
            "arch:resnet",
            {"target_modules": ["convolution"], "load_in_8bit": True,
             "model_class": "AutoModelForImageClassification"},
            {"transformers": ">=5"},
            depth="meta",
            why="convolutions are not quantized",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "load_in_4bit": True},
            depth="meta",
        ),
        Example(
            "healthy",
            "arch:mixtral",
            {"target_modules": ["q_proj", "v_proj"], "load_in_4bit": True},
            {"transformers": ">=4.53,<5"},
            depth="meta",
            why="the experts are linear layers",
        ),
        Example(
            "healthy",
            "arch:gpt2",
            {"target_modules": ["c_attn"], "load_in_4bit": True},
            depth="meta",
            why="Conv1D is quantized like a linear layer",
        ),
        Example(
            "healthy",
            "arch:mixtral",
            {"target_modules": ["q_proj", "v_proj"]},
            depth="meta",
            why="nobody asked for 4 bits",
        ),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        asked = _with_experts(case, case.structure.quantization)
        if asked is None or not asked.weights:
            return
        kept = [one for one in asked.kept if one.kind != "skipped" or asked.skip is None]
        wished = sum(one.weights for one in asked.kept) - sum(one.weights for one in kept)
        share = asked.quantized_weights / max(asked.weights - wished, 1)
        if share >= _LEAST or not kept:
            return
        left = asked.weights - asked.quantized_weights
        bytes_each = 4 if case.recipe.get("dtype") == "float32" else 2
        whole = asked.weights * _BITS[asked.kind] // 8
        real = asked.quantized_weights * _BITS[asked.kind] // 8 + left * bytes_each
        yield self.finding(
            "warning",
            f"Loading in {in_bits(asked.kind)} quantizes "
            f"{asked.quantized_weights / asked.weights:.0%} of the weights: {_count(left)} of "
            f"{_count(asked.weights)} stay unquantized ({gib(real)} instead of {gib(whole)}).",
            location=Location("module", kept[0].pattern),
            evidence=_evidence(asked, kept, bytes_each),
            proof=Proof("measured", "the installed transformers replaced the layers of the "
                                    "full-size model on the meta device, and the weights were "
                                    "counted"),
            fixes=(
                Fix(
                    f"Plan with {gib(real)} for these weights. For less, use a checkpoint that "
                    "stores them quantized, or a release whose class has them as linear layers.",
                    "manual",
                ),
            ),
        )  # fmt: skip


def _count(weights: int) -> str:
    """``46.4 billion``, ``23.5 million``, ``9,408``."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if weights >= size:
            return f"{weights / size:.3g} {name}"
    return f"{weights:,}"


def _with_experts(case: Case, asked: Quantization | None) -> Quantization | None:
    """What is quantized where the framework of the set-up quantizes fused experts by itself."""
    if asked is None or not case.has("set_up"):
        return asked
    framework = framework_named(case.set_up.format)
    if not framework.quantizes_experts(case.set_up.entries):
        return asked
    packed = sum(one.weights for one in asked.kept if one.kind == "parameter")
    kept = tuple(one for one in asked.kept if one.kind != "parameter")
    return replace(asked, quantized_weights=asked.quantized_weights + packed, kept=kept)


def _evidence(
    asked: Quantization, kept: list[KeptWeights], bytes_each: int
) -> tuple[Measurement, ...]:
    source = "full-size model, without embeddings and output head"
    lines = [
        Measurement(
            one.pattern,
            f"{one.count} x {one.class_name}, {_count(one.weights)} weights, "
            f"{gib(one.weights * bytes_each)}: {_WORDS[one.kind]}",
            source,
        )
        for one in kept[:4]
    ]
    skip = "by default " if asked.skip is None else ""
    names = asked.default_skip if asked.skip is None else asked.skip
    lines.append(Measurement("layers quantized", f"{asked.quantized} of {asked.linears}", source))
    lines.append(Measurement("llm_int8_skip_modules", skip + (quoted(names, 6) or "nothing"),
                             f"the {asked.origin}"))  # fmt: skip
    return tuple(lines)
