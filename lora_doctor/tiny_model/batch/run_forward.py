"""One forward that leaves no trace, and what it says about the model's cache."""

from __future__ import annotations

from typing import Any

#: What the outputs of a forward keep for the next one, by the names that they have or had:
#: transformers 5.24 calls `cache` what was `past_key_values`.
CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state", "states")


def run_forward(model: Any, inputs: dict[str, Any]) -> Any:
    """One forward without gradients; the random state and the model are the same afterwards."""
    import torch

    from lora_doctor.nn.copying import attributes_kept

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in inputs.items()}
    with attributes_kept(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return model(**moved)


def returns_own_cache(outputs: Any) -> bool:
    """Whether a model returned a cache of a class of its own: some are written in place, which
    leaves no way back for gradients (xLSTM)."""
    kept = [getattr(outputs, name, None) for name in CACHE_NAMES]
    return any(
        not isinstance(value, (tuple, list))
        and type(value).__module__.startswith("transformers.models")
        for value in kept
    )


def trainer_disables_cache() -> bool:
    """Whether the Trainer of the installed transformers sets `use_cache` to False by itself."""
    from dataclasses import fields

    from transformers import TrainingArguments

    known = {field.name: field.default for field in fields(TrainingArguments)}
    return known.get("use_cache") is False
