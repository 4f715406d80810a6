"""The forward arguments that a draft describes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.image_geometry import is_tiled
from lora_doctor.tiny_model.batch.values.encoder_inputs import encoder_input, encoder_vocabulary
from lora_doctor.tiny_model.batch.values.makers import MAKERS
from lora_doctor.tiny_model.batch.values.series import goes_with_series, series_value
from lora_doctor.tiny_model.batch.values.unknown import can_guess, guess
from lora_doctor.tiny_model.modalities import is_made_by_default


def make_arguments(draft: Draft) -> dict[str, Any]:
    """The arguments by name; of shape [batch, choices, …] where a sample is several to choose
    from."""
    if draft.choices:
        return _with_choices(draft)
    inputs: dict[str, Any] = {}
    for name in _names(draft):
        value = _value(draft, name, inputs)
        if value is not None and name in draft.mask_dims:  # of images, not of their pixels
            value = value.new_ones(value.shape[: draft.mask_dims[name]])
        if value is not None:
            inputs[name] = value
    inputs.update({k: v for k, v in draft.extra.items() if k not in draft.exclude})
    return inputs


def _with_choices(draft: Draft) -> dict[str, Any]:
    rows, choices = draft.batch_size, draft.choices
    flat = make_arguments(replace(draft, batch_size=rows * choices, choices=0))
    return {
        name: value.reshape(rows, choices, *value.shape[1:]) if hasattr(value, "reshape") else value
        for name, value in flat.items()
    }


def _value(draft: Draft, name: str, inputs: dict[str, Any]) -> Any:
    value = encoder_input(draft, name)
    if value is None:
        value = series_value(draft, name)
    if value is not None:
        return value
    maker = MAKERS.get(name)
    return maker(draft, inputs) if maker else guess(draft, name, inputs)


def _names(draft: Draft) -> list[str]:
    """Names of the arguments to make, in the order of the signature."""
    names = []
    for name, parameter in draft.parameters.items():
        if name in draft.exclude or not can_make(draft, name):
            continue
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if required or name in draft.include or _is_usual(draft, name):
            names.append(name)
    if draft.takes_any_argument():
        added = draft.include - draft.exclude - set(names)
        names += sorted(name for name in added if name in MAKERS)
    return names


def can_make(draft: Draft, name: str) -> bool:
    """Whether there is a value for an argument of this name."""
    return name in MAKERS or can_guess(draft, name)


def _is_usual(draft: Draft, name: str) -> bool:
    """Whether an argument is made though nothing requires it."""
    if encoder_vocabulary(draft, name) or goes_with_series(draft, name):
        return True
    if name in draft.sent and "labels" not in draft.sent:  # else they go with the labels
        return True
    if name not in MAKERS:
        return False
    if name == "image_sizes" and not is_tiled(draft):
        return (
            False  # Pixtral behind LLaVA takes them, CLIP does not: only when an error calls for it
        )
    if name == "attention_mask" and "input_ids" not in draft.parameters:
        return "flattened_patches" in draft.parameters
    return is_made_by_default(name, draft.modalities)


def can_disable_cache(draft: Draft) -> bool:
    """Whether `use_cache=False` changes anything for this forward, and was not set before."""
    config = getattr(draft.model, "config", None)
    takes = "use_cache" in draft.parameters or (
        draft.takes_any_argument() and getattr(config, "use_cache", None) is True
    )
    return takes and "use_cache" not in draft.extra
