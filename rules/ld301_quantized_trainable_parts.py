"""LD301: quantization freezes modules that must stay in floating point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
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
    asks_for_adapter,
    quoted,
)
from lora_doctor.rules._quantized import in_bits

if TYPE_CHECKING:
    from lora_doctor.rule_api import FloatPart, Quantization, Structure

#: Nothing of what follows can hold when the part to be trained has no floating point weights.
CONSEQUENCES = (
    "attaches", "forward", "gradients", "steps", "adapters-move", "loss-falls", "save-reload",
)  # fmt: skip


class QuantizedTrainableParts(Rule):
    """4-bit or 8-bit loading also quantizes modules that must stay in floating point: the model's
    built-in adapters, modules that are trained in full, the head.

    ## What happens
    In 4 bits their weights are uint8 (`Params4bit`), in 8 bits int8, and both are frozen: an
    integer has no gradient. Setting `requires_grad` raises `only Tensors of floating point dtype
    can require gradients`. Otherwise training ends at `element 0 of tensors does not require grad
    and does not have a grad_fn`, or runs silently while none of the adapters learns, because an
    embedding or a norm still gets a gradient.

    ## Why
    transformers replaces every linear layer whose name is not in `llm_int8_skip_modules`, and the A
    and B of a built-in LoRA are linear layers. 8 bits instead of 4 does not help. A list in the
    recipe replaces the default, so it must also name the head. How names are matched differs
    between releases: `lora_A` matches in transformers 4 and silently not in 5; with a regular
    expression it is the other way round. If the checkpoint is already quantized, its own list is
    used.

    ## Versions
    All versions of transformers and bitsandbytes. transformers before 4.45 quantizes on a GPU only;
    which layers it would replace is still determined by running its code.

    ## Fix
    A skip list that the installed transformers honours, verified by running its replacement again:
    these modules stay, every other layer is quantized as before. The adapters take more memory than
    quantized ones; otherwise they could not be trained.

    ## Links
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
    """

    code = "LD301"
    name = "quantized-trainable-parts"
    summary = "Quantization freezes built-in adapters, modules_to_save or the head."
    depth = "meta"
    about_training = True
    symptoms = (
        Symptom(r"[Oo]nly Tensors of floating point (and complex )?dtype can require gradients"),
        Symptom(r"element 0 of (?:tensors|variables) does not require grad", weight=-2),
        Symptom(
            r"element 0 of (?:tensors|variables) does not require grad",
            context=r"(?i)bitsandbytes|load_in_[48]bit|prepare_model_for_kbit|\bq?-?lora.{0,20}[48].?bit",
        ),
        Symptom(r"\w+_kernel\w*[\"'] not implemented for '(Byte|Char)'"),
    )
    descriptions = (
        Symptom(
            r"\A(?=.*\b(?:head|classifier|score|modules_to_save)\b)(?=.*\b(?:Linear4bit|Linear"
            r"8bitLt|Params4bit|quantized (?:too|as well))\b).+"
        ),
    )
    told_as = ("The classification head is quantized, and is not trained.",)
    examples = (
        Example(
            "broken",
            "arch:roberta",
            {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "load_in_4bit": True},
            why="a head of two layers, of which the default list keeps one or none",
        ),
        Example(
            "broken",
            "arch:llama",
            {
                "target_modules": ["q_proj", "v_proj"],
                "load_in_8bit": True,
                "llm_int8_skip_modules": ["o_proj"],
            },
            why="a list that takes the place of the default and forgets the head",
        ),
        Example(
            "healthy",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "load_in_4bit": True},
        ),
        Example(
            "healthy",
            "arch:llama",
            {
                "target_modules": ["q_proj"],
                "modules_to_save": ["lm_head"],
                "load_in_8bit": True,
            },
            why="the default list keeps the head",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure = case.structure
        asked = structure.quantization
        if asked is None:
            return
        hit = [part for part in asked.parts if part.quantized]
        if not hit:
            return
        trained = [part for part in hit if _is_trained(case, part)]
        severity: Severity = "error" if trained else "warning"
        yield self.finding(
            severity,
            _message(asked, hit, bool(trained)),
            location=Location("recipe", "llm_int8_skip_modules" if asked.skip is not None
                              else f"load_in_{asked.kind}"),
            evidence=_evidence(structure, asked, hit),
            proof=Proof("measured", "the installed transformers replaced these layers in the "
                                    "full-size model on the meta device; nothing was loaded"),
            fixes=_fixes(asked, hit),
            explains=CONSEQUENCES if trained else (),
        )  # fmt: skip


def _is_trained(case: Case, part: FloatPart) -> bool:
    """Built-in adapters are only inference where the recipe trains one of its own on top."""
    if part.kind == "adapter":
        return not asks_for_adapter(case.recipe)
    return part.kind == "modules_to_save"


def _names(parts: list[FloatPart]) -> str:
    words = {"adapter": "built-in adapter", "modules_to_save": "trained module", "head": "head"}
    return ", ".join(f"{words[part.kind]} {part.name}" for part in parts)


def _message(asked: Quantization, hit: list[FloatPart], trained: bool) -> str:
    count, total = sum(part.quantized for part in hit), sum(part.tensors for part in hit)
    dtype = "uint8" if asked.kind == "4bit" else "int8"
    adapters = [part for part in hit if part.kind == "adapter"]
    if trained and len(adapters) == len(hit):
        end = f"{total} LoRA tensors, {total - count} trainable"
    elif trained:
        end = f"{count} of {total} weights are {dtype} and cannot be trained"
    else:
        end = f"{count} of {total} weights are {dtype}"
    return f"Loading in {in_bits(asked.kind)} also quantizes the {_names(hit)}: {end}."


def _evidence(
    structure: Structure, asked: Quantization, hit: list[FloatPart]
) -> tuple[Measurement, ...]:
    source = "installed transformers, full-size model on the meta device"
    lines = [
        Measurement(_names([part]), f"{part.quantized} of {part.tensors} weights quantized: "
                f"{quoted(part.examples, 3)}", source)
        for part in hit
    ]  # fmt: skip
    skip = (
        quoted(asked.skip, 6)
        if asked.skip is not None
        else "not given; by default " + (quoted(asked.default_skip, 6) or "nothing")
    )
    lines.append(Measurement("llm_int8_skip_modules", skip, f"the {asked.origin}"))
    lines.append(Measurement("layers quantized", f"{asked.quantized} of {asked.linears}", source))
    if asked.proposed_skip:
        lines.append(
            Measurement("with the skip list of the fix", f"{asked.quantized_with_proposal} of "
                    f"{asked.linears}, none of these", source)
        )  # fmt: skip
    if structure.built_in and not structure.built_in.wrapped:
        count = sum(state.tensors for state in structure.built_in.adapters)
        lines.append(Measurement("LoRA tensors", count, structure.model_class))
    return tuple(lines)


def _fixes(asked: Quantization, hit: list[FloatPart]) -> tuple[Fix, ...]:
    if asked.origin == "checkpoint":
        return (
            Fix(
                "The checkpoint is already quantized, and its own skip list takes precedence "
                "over the recipe's: load the unquantized checkpoint with llm_int8_skip_modules "
                f"{quoted(asked.proposed_skip, 8)}, or dequantize these layers after loading.",
                "manual",
            ),
        )
    if not asked.proposed_skip:
        return (
            Fix(
                f"No skip list excludes only the {_names(hit)}; load without quantization, in "
                "bfloat16.",
                "manual",
            ),
        )
    names = ", ".join(asked.proposed_skip)
    return (
        Fix(
            f"Keep them in floating point: llm_int8_skip_modules {names}.",
            "safe",
            (Edit("llm_int8_skip_modules", list(asked.proposed_skip)),),
        ),
    )
