"""A time series that is forecast from its own past: as much of it as lags and context reach back,
what is known of each of its moments, and the future that is learnt from. Torch is imported inside
functions."""

from __future__ import annotations

from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.config_roles import flat_ints

#: What the series has where the config counts it, by the entry that does.
_STATIC = {
    "static_categorical_features": "num_static_categorical_features",
    "static_real_features": "num_static_real_features",
}


def goes_with_series(draft: Draft, name: str) -> bool:
    """Whether a series is not complete without this argument, though nothing requires it."""
    if not _past_length(draft):
        return False
    known = ("future_values", "past_time_features", "future_time_features", "past_observed_mask")
    return name in known or draft.entries.number(_STATIC.get(name, "")) > 0


def series_value(draft: Draft, name: str) -> Any:
    """The value of an argument that belongs to such a series; None for every other."""
    past, future = _past_length(draft), draft.entries.number("prediction_length")
    if not past:
        return None
    if name in _STATIC:
        return _static(draft, name)
    kind = name.removeprefix("past_").removeprefix("future_")
    length = future if name.startswith("future_") else past
    if name == kind or kind not in ("values", "time_features", "observed_mask"):
        return None
    rows = draft.batch_size
    if kind == "time_features":
        return _random(draft, rows, length, draft.entries.number("num_time_features"))
    several = draft.entries.number("input_size", default=1)
    values = _random(draft, rows, length, *([several] if several > 1 else [])).abs() + 0.5
    return values if kind == "values" else values.new_ones(values.shape)


def _past_length(draft: Draft) -> int:
    """Values of the past that forward looks at; 0 where it takes no series with lags."""
    context = draft.entries.number("context_length", "prediction_length")
    if "past_time_features" not in draft.parameters or not context:
        return 0
    nodes = draft.entries.nodes()
    lags = [lag for node in nodes for lag in flat_ints(node.values.get("lags_sequence"))]
    return context + max(lags, default=0)


def _static(draft: Draft, name: str) -> Any:
    """What holds for the whole series: kinds that it belongs to (the first two, in turn), or
    numbers."""
    import torch

    count = draft.entries.number(_STATIC[name])
    if name == "static_real_features":
        return _random(draft, draft.batch_size, count)
    return torch.arange(draft.batch_size)[:, None].expand(-1, count) % 2


def _random(draft: Draft, *shape: int) -> Any:
    import torch

    return torch.randn(shape, generator=draft.generator()) * 0.5
