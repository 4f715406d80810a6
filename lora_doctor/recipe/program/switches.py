"""What turns a key of the recipe on in a program beside the arguments of a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.recipe.program.objects import (
    Roles,
    is_preparation,
    is_wrap,
    loader_of,
    text_of,
    top,
)
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.values import Call, Known

#: What scales the loss of a loop that computes in float16.
_SCALERS = ("torch.amp.GradScaler", "torch.cuda.amp.GradScaler")


def mixed_precision(program: Program, roles: Roles) -> tuple[str, Call] | None:
    """``fp16`` or ``bf16`` of a loop of the program's own, and what says so: accelerate, or a
    scaler of torch. A trainer has its arguments for it."""
    if roles.trainer is not None or roles.training is not None:
        return None
    for call in program.calls:
        if not call.certain:
            continue
        key = text_of(call.value("mixed_precision"))
        if call.name == "accelerate.Accelerator" and key in ("fp16", "bf16"):
            return key, call
        if call.name in _SCALERS and call.value("enabled") is None:
            return "fp16", call
    return None


def checkpointing(program: Program, roles: Roles, values: Mapping[str, Any]) -> Call | None:
    """The call that turns gradient checkpointing on. ``values``: of the recipe, as far as read."""
    return next(
        (call for call in program.calls if call.certain and _checkpoints(call, roles, values)), None
    )


def _checkpoints(call: Call, roles: Roles, values: Mapping[str, Any]) -> bool:
    own = roles.loader is not None
    if is_preparation(call) and own and loader_of(call.value("model", 0)) is roles.loader:
        quantized = values.get("load_in_4bit") or values.get("load_in_8bit")
        return bool(quantized) and not _is_off(call, 1)
    if call.method == "gradient_checkpointing_enable":
        return own and loader_of(call.receiver) is roles.loader
    return is_wrap(call) and top(call.name) == "unsloth" and not _is_off(call)


def _is_off(call: Call, place: int | None = None) -> bool:
    wanted = call.value("use_gradient_checkpointing", place)
    return isinstance(wanted, Known) and not wanted.value
