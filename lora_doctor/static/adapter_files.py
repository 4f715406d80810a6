"""The files of an adapter that was saved: its config, and the header of its weights.

Nothing of the weights is read here. ``adapter_model.bin`` is a pickle and is never loaded: names
and shapes are read off it where it lies in a folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.static.pickled_weights import read_pickled
from lora_doctor.static.piece import read_json_object, shown
from lora_doctor.static.weights import Weights, read_weights

if TYPE_CHECKING:
    from lora_doctor.static.hub.snapshot import HubSnapshot

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
#: Pickle, as PEFT saved before it had safetensors: loading one may run code, so it never is.
PICKLED_WEIGHTS = "adapter_model.bin"


_SHOWN = 3
_DOWNLOAD = "download the adapter and give its folder, or convert it to safetensors"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter folder, or what was fetched of an adapter on the hub: there the folder has its
    weights only once somebody needs their numbers."""

    #: Where it is; in the hub's cache for one of the hub.
    folder: Path
    #: Its adapter_config.json.
    config: dict[str, Any]
    #: What the header of its weights says; ``None`` where nothing of a pickle could be read.
    header: Weights | None
    #: What the hub said of it; ``None`` for a folder.
    snapshot: HubSnapshot | None = None
    #: Whether its weights are a pickle, which PEFT loads and nothing here does.
    pickled: bool = False
    #: Why there is no header.
    unread: str = ""

    @property
    def weights(self) -> Weights:
        """What the header of its weights says.

        Raises:
            EvidenceError: they are a pickle of which nothing could be read.
        """
        if self.header is None:
            raise EvidenceError(self.unread, remedy="file")
        return self.header

    @property
    def weights_name(self) -> str:
        """The file that its weights are in."""
        return PICKLED_WEIGHTS if self.pickled else WEIGHTS

    @property
    def place(self) -> str:
        """Where it is, as the report names it: the folder, or its id with the commit."""
        return str(self.folder) if self.snapshot is None else self.snapshot.source

    @property
    def weights_size(self) -> int | None:
        """Bytes of its weights on the hub; ``None`` where the hub did not say."""
        files = self.snapshot.files if self.snapshot is not None else ()
        return next((file.size for file in files if file.name == WEIGHTS), None)

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
        InputError: the folder holds no adapter.
    """
    if not folder.is_dir():
        raise InputError(
            f"adapter {str(folder)!r}: no such folder; give one, or ORG/NAME for an adapter on the "
            "hub"
        )
    where = f"adapter {str(folder)!r}"
    config = _config(folder, where)
    if not (folder / WEIGHTS).is_file() and (folder / PICKLED_WEIGHTS).is_file():
        return _pickled(folder, config)
    return AdapterFiles(folder, config, _weights(folder, where))


def adapter_of(snapshot: HubSnapshot) -> AdapterFiles:
    """The adapter that was fetched.

    Raises:
        InputError: it cannot be read.
    """
    where = f"adapter {snapshot.source}"
    config = _config(snapshot.folder, where)
    if snapshot.weights is None:  # only the cache was looked at
        return AdapterFiles(snapshot.folder, config, _weights(snapshot.folder, where), snapshot)
    names = {file.name for file in snapshot.files}
    if WEIGHTS not in names and PICKLED_WEIGHTS in names:
        why = f"{PICKLED_WEIGHTS} on the hub is a pickle, which is not fetched: {_DOWNLOAD}"
        return AdapterFiles(snapshot.folder, config, None, snapshot, pickled=True, unread=why)
    if snapshot.weights.value is None:
        raise InputError(f"{where}: {snapshot.weights.reason}")
    return AdapterFiles(snapshot.folder, config, snapshot.weights.value, snapshot)


def _config(folder: Path, where: str) -> dict[str, Any]:
    try:
        config = read_json_object(folder / CONFIG)
    except EvidenceError as error:
        raise InputError(f"{where}: {error}{_below(folder)}") from None
    if not isinstance(config.get("peft_type"), str):
        raise InputError(
            f"{folder / CONFIG}: has no peft_type, so it is not the config of an adapter"
        )
    return config


def _below(folder: Path) -> str:
    """Adapters in folders of this one, in words: ``save_pretrained`` writes an adapter that is not
    called ``default`` into a folder of its name, and a Trainer its checkpoints."""
    if (folder / CONFIG).exists():
        return ""
    found = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if not found:
        return ""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"; there are adapters in its folders {', '.join(map(shown, found[:_SHOWN]))}{more}"


def _weights(folder: Path, where: str) -> Weights:
    try:
        return read_weights(folder, stem=WEIGHTS.removesuffix(".safetensors"))
    except EvidenceError as error:
        raise InputError(f"{where}: {error}") from None


def _pickled(folder: Path, config: dict[str, Any]) -> AdapterFiles:
    try:
        return AdapterFiles(folder, config, read_pickled(folder / PICKLED_WEIGHTS), pickled=True)
    except EvidenceError as error:
        return AdapterFiles(folder, config, None, pickled=True, unread=str(error))


def base_class_of(config: dict[str, Any]) -> str:
    """The class in ``auto_mapping`` of an adapter_config.json; empty without one."""
    mapping = config.get("auto_mapping")
    value = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return value if isinstance(value, str) else ""


def is_adapter_folder(folder: Path) -> bool:
    """Whether the folder holds an adapter and no model. Never raises, however long its name is."""
    held = (os.path.isfile(folder / name) for name in (CONFIG, "config.json"))
    return next(held) and not next(held)


def weights_beside(file: Path) -> str | None:
    """The name of the weights that belong to an ``adapter_config.json``; ``None`` without any, and
    for a file of another name, which PEFT does not read."""
    if file.name != CONFIG:
        return None
    return next(
        (name for name in (WEIGHTS, PICKLED_WEIGHTS) if (file.parent / name).is_file()), None
    )
