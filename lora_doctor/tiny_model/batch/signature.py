"""What a forward takes: its parameters, and which modalities these can be made into."""

from __future__ import annotations

import inspect
from typing import Any

from lora_doctor.tiny_model.batch.names import common_names, has_tower, renamed
from lora_doctor.tiny_model.modalities import taken


def forward_parameters(model: Any) -> dict[str, inspect.Parameter]:
    """Parameters of `model.forward`; of the wrapped model's where a wrapper names none itself."""
    parameters = dict(inspect.signature(model.forward).parameters)
    named = [p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    # a wrapper that only passes on (PeftModel, PeftMixedModel) takes what it wraps takes
    if hasattr(model, "get_base_model"):
        inner = model.get_base_model()
    else:
        inner = getattr(getattr(model, "base_model", None), "model", None)
    return parameters if named or inner is None else forward_parameters(inner)


def modality_choices(
    parameters: dict[str, inspect.Parameter], modality: str, model: Any = None
) -> list[set[str]]:
    """Sets of modalities to try, the fullest first.

    `modality`: "auto" for all that forward takes, else the name of the only one beside text.
    Videos stand beside images only where `model` has a tower of their own for them.
    """
    can = taken(renamed(parameters, common_names(parameters)))
    if {"image", "video"} <= can and not has_tower(model, "video"):
        can.remove("video")
    if modality != "auto":
        # an image model that reads text needs its text too
        wanted = {modality} if modality == "text" else {modality, "text"} & can
        return [wanted] if modality in can else []
    # Without any of these (a time series), what forward cannot do without is made up.
    choices = [can] if can or _required(parameters) else []
    for less in (can - {"video"}, can - {"audio"}, can - {"image", "video"}, can & {"text"}):
        if less and less not in choices:
            choices.append(less)
    return choices


def _required(parameters: dict[str, inspect.Parameter]) -> list[str]:
    """Names of the arguments without a default value that are annotated as tensors."""
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and "Tensor" in str(parameter.annotation)
    ]


def missing_forward(model: Any) -> str:
    """Why a model that has no forward cannot be trained as it is; empty where it has one."""
    from torch.nn import Module

    if type(model).forward is not Module.forward:
        return ""
    parts = [
        name for name, part in model.named_children() if type(part).forward is not Module.forward
    ]
    return (
        f"{type(model).__name__} has no forward, it only generates; its parts "
        f"({', '.join(parts[:6])}) are trained one by one"
    )
