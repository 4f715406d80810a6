"""The validation of Lightning's trainer. It comes after a number of batches that is counted before
training begins; a loader that ends early never has so many. What waits for its metrics (early
stopping, the best checkpoint) would fail in a dry run only."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting

#: Lightning is one package or two, by how it was installed.
_LOOPS = (
    "lightning.pytorch.loops.training_epoch_loop",
    "pytorch_lightning.loops.training_epoch_loop",
)


def prepare(acting: Acting) -> None:
    """Once there is the loop over an epoch's batches."""
    for name in _LOOPS:
        acting.after(name, lambda module: _due(acting, module))


def _due(acting: Acting, module: ModuleType) -> None:
    owner = module._TrainingEpochLoop
    if not {"_should_check_val_fx", "_should_check_val_epoch"} <= vars(owner).keys():
        return

    def due(original: Any, loop: Any, *arguments: Any, **named: Any) -> bool:
        if original(loop, *arguments, **named):
            return True
        return acting.ended and not acting.in_contract and bool(loop._should_check_val_epoch())

    acting.replaced.around(owner, "_should_check_val_fx", due)
