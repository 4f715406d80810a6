"""Whether a Trainer of the installed libraries distributes the ranks of AdaLoRA."""

from __future__ import annotations

import functools

from lora_doctor.static.installed.environment import installed_text, package_folder

#: The method of PEFT's ``AdaLoraModel`` that a training loop has to call after each step.
ALLOCATES = "update_and_allocate"
_TRAINERS = {"transformers": ("trainer.py",), "trl": ("trainer/base_trainer.py",)}


@functools.cache
def trainer_allocates() -> bool:
    """Whether the source of one of them has the call; read, not imported."""
    for package, files in _TRAINERS.items():
        folder = package_folder(package)
        for name in files if folder is not None else ():
            assert folder is not None
            path = folder / name
            if path.is_file() and ALLOCATES in installed_text(path):
                return True
    return False
