"""The recipe's neighbours that take less memory, the nearest first, as edits of the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_doctor.recipe.recipe import Recipe

_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Alternative:
    """``changes``: keys of the recipe with their new values."""

    name: str
    changes: dict[str, Any]


def alternatives(
    recipe: Recipe, dtype: str, *, can_checkpoint: bool, can_quantize: bool
) -> tuple[Alternative, ...]:
    """What to try, in the order in which it would be advised.

    Checkpointing first: it costs time and changes no number. Then fewer bits. Batch size and
    length are never touched: they change what is learnt.

    Args:
        dtype: of the weights as the recipe has them.
        can_quantize: whether the checkpoint is one that can still be quantized.
    """
    less = _checkpointed(recipe) if can_checkpoint else {}
    found = [Alternative("gradient checkpointing", less)] if less else []
    if can_quantize:
        for name, changes in _precisions(recipe, dtype):
            found.append(Alternative(name, changes))
            if less:
                found.append(Alternative(f"{name}, gradient checkpointing", {**changes, **less}))
    return tuple(found)


def _checkpointed(recipe: Recipe) -> dict[str, Any]:
    """Not reentrant, because with reentrance adapters may get no gradient (LD501)."""
    if recipe.get("gradient_checkpointing"):
        return {}
    changes: dict[str, Any] = {"gradient_checkpointing": True}
    options = dict(recipe.get("gradient_checkpointing_kwargs") or {})
    if "use_reentrant" not in options:
        changes["gradient_checkpointing_kwargs"] = {**options, "use_reentrant": False}
    return changes


def _precisions(recipe: Recipe, dtype: str) -> list[tuple[str, dict[str, Any]]]:
    """Fewer bits than the recipe has come first, more bits last."""
    kind = recipe.quantized
    off = {f"load_in_{kind}": False} if kind else {}
    bfloat16 = ("bfloat16", {**off, "dtype": "bfloat16"})
    eight = ("8-bit", {**off, "load_in_8bit": True})
    four = (
        "4-bit",
        {
            **off,
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            # Without it transformers computes in float32.
            "bnb_4bit_compute_dtype": dtype if dtype in _HALF else "bfloat16",
        },
    )
    if kind == "4bit":
        double = ("double quantization", {"bnb_4bit_use_double_quant": True})
        more = [] if recipe.get("bnb_4bit_use_double_quant") else [double]
        return [*more, eight, bfloat16]
    if kind == "8bit":
        return [four, bfloat16]
    return [eight, four] if dtype in _HALF else [bfloat16, eight, four]
