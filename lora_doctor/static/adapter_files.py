"""The files of an adapter: which of them hold what was trained."""

from __future__ import annotations

from pathlib import Path

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
#: Pickle, as PEFT saved before it had safetensors: loading one may run code, so it never is.
PICKLED_WEIGHTS = "adapter_model.bin"


def weights_beside(file: Path) -> str | None:
    """The name of the weights that belong to an ``adapter_config.json``; ``None`` without any, and
    for a file of another name, which PEFT does not read."""
    if file.name != CONFIG:
        return None
    return next(
        (name for name in (WEIGHTS, PICKLED_WEIGHTS) if (file.parent / name).is_file()), None
    )
