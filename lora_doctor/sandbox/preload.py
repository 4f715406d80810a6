"""Imported by the worker before it forks, so that no task pays for it again.

Every task needs these modules of ours, and most ask transformers 5 how old checkpoints name their
weights, which builds a table of a thousand regular expressions: together half a second of processor
time in a task that takes one. Nothing here runs an operator of torch or starts a thread; what
cannot be imported is left to the task, which says so where it needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil

_MODULES = (
    "lora_doctor.evidence.loading",
    "lora_doctor.evidence.loading_by_code",
    "lora_doctor.evidence.meta",
    "lora_doctor.evidence.tiny",
)
_WHOLE = ("lora_doctor.contract.observers", "lora_doctor.tiny_model")


def _import_ours() -> None:
    for name in _MODULES:
        importlib.import_module(name)
    for name in _WHOLE:
        package = importlib.import_module(name)
        for info in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(info.name)


def _build_renames() -> None:
    """The table that transformers builds when first asked, and then keeps; PEFT asks it too."""
    with contextlib.suppress(ImportError, AttributeError):  # transformers 4 renames nothing
        conversions = importlib.import_module("transformers.conversion_mapping")
        conversions.get_checkpoint_conversion_mapping("")
        importlib.import_module("peft.utils.transformers_weight_conversion")


_import_ours()
_build_renames()
