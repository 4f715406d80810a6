"""The files of an adapter that was saved: its config, and the header of its weights.

Nothing of the weights is read here. ``adapter_model.bin`` is a pickle and is never opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.static.piece import read_json_object, shown
from lora_doctor.static.weights import Weights, read_weights

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
#: Pickle, as PEFT saved before it had safetensors: loading one may run code, so it never is.
PICKLED_WEIGHTS = "adapter_model.bin"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter folder."""

    #: Where it is.
    folder: Path
    #: Its adapter_config.json.
    config: dict[str, Any]
    #: What the header of adapter_model.safetensors says.
    weights: Weights

    @property
    def base_model(self) -> str:
        """The base model that the config names; empty when it names none."""
        value = self.config.get("base_model_name_or_path")
        return value if isinstance(value, str) else ""

    @property
    def base_class(self) -> str:
        """The class that was trained, where the config says so; else empty."""
        return base_class_of(self.config)


def read_adapter(folder: Path) -> AdapterFiles:
    """The files of the adapter in a folder.

    Raises:
        InputError: the folder holds no adapter, or none that can be read without running code.
    """
    if not folder.is_dir():
        raise InputError(
            f"adapter {str(folder)!r}: no such folder; an adapter on a hub is downloaded first "
            "(hf download)"
        )
    try:
        config = read_json_object(folder / CONFIG)
    except EvidenceError as error:
        raise InputError(f"adapter {str(folder)!r}: {error}") from None
    if not isinstance(config.get("peft_type"), str):
        raise InputError(f"{folder / CONFIG}: has no peft_type; it is no config of PEFT's")
    if not (folder / WEIGHTS).is_file() and (folder / PICKLED_WEIGHTS).is_file():
        raise InputError(
            f"{folder / PICKLED_WEIGHTS}: is a pickle, which may run code and is not loaded; load "
            "it where you trust it and save it again, which writes safetensors"
        )
    try:
        weights = read_weights(folder, stem=WEIGHTS.removesuffix(".safetensors"))
    except EvidenceError as error:
        raise InputError(f"adapter {str(folder)!r}: {error}") from None
    return AdapterFiles(folder, config, weights)


def base_class_of(config: dict[str, Any]) -> str:
    """The class in ``auto_mapping`` of an adapter_config.json; empty without one."""
    mapping = config.get("auto_mapping")
    value = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return value if isinstance(value, str) else ""


def is_adapter_folder(folder: Path) -> bool:
    """Whether the folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_folder_of(folder: Path) -> Path:
    """The folder of the base model that an adapter folder names.

    Raises:
        InputError: it names none, or none that is a folder here.
    """
    try:
        name = read_json_object(folder / CONFIG).get("base_model_name_or_path")
    except EvidenceError as error:
        raise InputError(f"MODEL {str(folder)!r}: {error}") from None
    if isinstance(name, str) and name and "\0" not in name and Path(name).is_dir():
        return Path(name)
    named = f"names {shown(name)}, which is no folder here" if name else "names no base model"
    raise InputError(
        f"MODEL {str(folder)!r}: holds an adapter whose config {named}; give the base model as "
        f"MODEL, and this folder with --adapter"
    )


def weights_beside(file: Path) -> str | None:
    """The name of the weights that belong to an ``adapter_config.json``; ``None`` without any, and
    for a file of another name, which PEFT does not read."""
    if file.name != CONFIG:
        return None
    return next(
        (name for name in (WEIGHTS, PICKLED_WEIGHTS) if (file.parent / name).is_file()), None
    )
