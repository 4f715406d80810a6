"""Checkpoints of Lightning and Fabric, which are written through fsspec: into the session's folder,
and read back from there."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.acts.outputs import Redirected

#: Lightning is one package or several, by how it was installed.
_FABRICS = ("lightning.fabric", "lightning_fabric")


def prepare(acting: Acting) -> None:
    """Once there is what reads and writes them."""
    places = Redirected(acting)
    for name in _FABRICS:
        acting.after(f"{name}.plugins.io.torch_io", lambda m: _checkpoints(acting, places, m))
        acting.after(f"{name}.utilities.cloud_io", lambda m: _loading(acting, places, m))


def _checkpoints(acting: Acting, places: Redirected, module: ModuleType) -> None:
    owner = module.TorchCheckpointIO

    def saving(original: Any, io: Any, checkpoint: Any, path: Any, *more: Any, **named: Any) -> Any:
        return original(io, checkpoint, places.to_write(path), *more, **named)

    def removing(original: Any, io: Any, path: Any, *more: Any, **named: Any) -> Any:
        found = places.to_read(path)
        if places.is_of_this_run(found):  # a checkpoint of an earlier run stays
            original(io, found, *more, **named)

    def loading(original: Any, io: Any, path: Any, *more: Any, **named: Any) -> Any:
        return original(io, places.to_read(path), *more, **named)

    acting.replaced.around(owner, "save_checkpoint", saving)
    acting.replaced.around(owner, "load_checkpoint", loading)
    acting.replaced.around(owner, "remove_checkpoint", removing)


def _loading(acting: Acting, places: Redirected, module: ModuleType) -> None:
    """``load_from_checkpoint``, and Fabric's ``load``; before others import the function."""
    acting.replaced.around(module, "_load", places.reading_first)
