"""What makes the inputs of checkpointed layers need a gradient, in a program."""

from __future__ import annotations

from lora_doctor.recipe.program.objects import (
    Roles,
    adds_without_wrapper,
    is_wrap,
    loader_of,
    top,
)
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.values import Call


def makes_inputs_need_gradients(program: Program, roles: Roles) -> Call | None:
    """The call by which the output of the input embeddings needs a gradient; ``None`` where it is
    left to transformers, which up to 4.57 does nothing for a ``PeftModel``.

    A call behind a condition counts: the usual ones ask whether the model has the method, or
    whether there is checkpointing at all.
    """
    return next(
        (call for call in program.calls if _by_itself(call, roles) or _by_peft(call, roles)),
        _by_library(roles),
    )


def _by_itself(call: Call, roles: Roles) -> bool:
    """The method of transformers, or the hook that its documentation shows for it."""
    if call.method == "enable_input_require_grads":
        return loader_of(call.receiver) is roles.loader
    return call.method == "register_forward_hook" and "get_input_embeddings" in call.name


def _by_peft(call: Call, roles: Roles) -> bool:
    """``get_peft_model`` does it for a model that checkpoints already."""
    wrapper, loader = roles.wrapper, roles.loader
    return (
        call.method == "gradient_checkpointing_enable"
        and loader is not None
        and loader_of(call.receiver) is loader
        and wrapper is not None
        and is_wrap(wrapper)
        and call.number < wrapper.number
    )


def _by_library(roles: Roles) -> Call | None:
    """TRL's trainers and Unsloth do it for every adapter, transformers for those that its own
    ``add_adapter`` has put on."""
    trainer, wrapper = roles.trainer, roles.wrapper
    if trainer is not None and top(trainer.name) in ("trl", "unsloth"):
        return trainer
    if wrapper is not None and is_wrap(wrapper) and top(wrapper.name) == "unsloth":
        return wrapper
    return adds_without_wrapper(roles)
