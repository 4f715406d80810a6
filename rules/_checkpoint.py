"""What the rules about a checkpoint that comes quantized have in common.

Pure: reads a :class:`Case`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_doctor.rule_api import Case, Edit, Fix, Measurement, gib

if TYPE_CHECKING:
    from lora_doctor.rule_api import CheckpointQuantization

#: A checkpoint in floating point has two bytes for each number.
_HALF = 2
_PIP = re.compile(r"`?(pip install [^`\n)]+)`?")


def of(case: Case) -> CheckpointQuantization | None:
    """What the libraries make of the checkpoint's quantization; ``None`` where it has none."""
    if not case.has("static") or case.static.quantization_config is None:
        return None
    return case.checkpoint_quantization


def dequantizing(case: Case, found: CheckpointQuantization) -> Fix | None:
    """Load the weights in floating point, where this release can; else how to come by them."""
    if found.dequantizes != "loading":
        return None
    size = gib(case.structure.total_parameters * _HALF)
    return Fix(
        f"Load it in floating point: quantization_config={found.dequantizing} for from_pretrained; "
        f"the base model then takes {size} in bfloat16.",
        "unsafe",
        (Edit("dequantize", True),),
    )


def without_quantization(found: CheckpointQuantization) -> Fix:
    """What can be done by hand where loading cannot dequantize."""
    if found.dequantizes == "afterwards":
        return Fix(
            "Call model.dequantize() after loading, before get_peft_model; or train the "
            "unquantized checkpoint from which this one was made.",
            "manual",
        )
    return Fix("Train the unquantized checkpoint from which this one was made.", "manual")


def method(found: CheckpointQuantization) -> Measurement:
    """Which quantization it is."""
    named = f"{found.method} ({found.config_class})" if found.config_class else found.method
    return Measurement("quantization of the checkpoint", named or "unnamed", "config.json")


def to_install(message: str) -> str:
    """The command that a library's message names; empty where it names none."""
    named = _PIP.search(message)
    return named[1].strip().rstrip(".") if named else ""
