"""What an optimizer keeps for the trained weights, asked of the optimizer itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: What the Trainer takes when nobody says anything is one of these, by release; all are AdamW.
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf")


def state_bytes(trained: Sequence[tuple[Any, int]], name: str) -> int:
    """Bytes of the optimizer's state after a step.

    Args:
        trained: parameters on meta, each with the number of such in the full model.
        name: as ``optim`` of the Trainer: ``adamw_torch``, ``adamw_8bit``, ``sgd``, ...

    Raises:
        Exception: the optimizer is not installed, or does not run on meta; its own words.
    """
    import torch

    parameters = [torch.nn.Parameter(one.detach().clone()) for one, _ in trained]
    cls, options = _class_of(name)
    optimizer = cls(parameters, **options)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    if hasattr(optimizer, "init_state"):
        _without_kernels(optimizer)
    else:
        optimizer.step()
    return sum(
        _size(optimizer.state[parameter]) * times
        for parameter, (_, times) in zip(parameters, trained, strict=True)
    )


def _class_of(name: str) -> tuple[Any, dict[str, Any]]:
    """The class and its arguments, as the installed Trainer would choose them."""
    import torch

    if name in ADAMW:
        return torch.optim.AdamW, {"lr": 1e-3}
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(output_dir="unused", optim=name, report_to=[], use_cpu=True)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return cls, {"lr": 1e-3, **{k: v for k, v in options.items() if k != "lr"}}


def _without_kernels(optimizer: Any) -> None:
    """bitsandbytes makes the state apart from the step, which needs a device."""
    # Paged state lies in memory that the GPU and the CPU share; it is as large.
    optimizer.is_paged = False
    optimizer.check_overrides()
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, group_index, index)


def _size(state: Any) -> int:
    tensors = {id(one): one for one in state.values() if hasattr(one, "untyped_storage")}
    # The step counter lies on the CPU.
    return sum(
        int(one.numel()) * one.element_size()
        for one in tensors.values()
        if one.device.type != "cpu"
    )
