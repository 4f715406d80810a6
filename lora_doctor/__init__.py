"""lora-doctor: finds, fixes and proves what would go wrong in a LoRA fine-tuning run.

    import lora_doctor

    diagnosis = lora_doctor.check("arch:phi3", {"target_modules": ["q_proj", "v_proj"]})
    diagnosis = lora_doctor.fix("./my-model", "recipe.yaml")
    verification = lora_doctor.verify(my_module, lora_config)
    lora_doctor.apply("lora-doctor.prescription.json")   # first line of a training script

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_doctor._version import __version__

if TYPE_CHECKING:
    from lora_doctor.api import check, fix, verify
    from lora_doctor.errors import EvidenceError, InputError, LoraDoctorError
    from lora_doctor.prescription.apply import apply
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.verification import Verification

__all__ = [
    "Diagnosis",
    "EvidenceError",
    "InputError",
    "LoraDoctorError",
    "Recipe",
    "Verification",
    "__version__",
    "apply",
    "check",
    "fix",
    "verify",
]

_HOMES = {
    "check": "api",
    "fix": "api",
    "verify": "api",
    "apply": "prescription.apply",
    "Diagnosis": "results.diagnosis",
    "Recipe": "recipe.recipe",
    "Verification": "results.verification",
    "EvidenceError": "errors",
    "InputError": "errors",
    "LoraDoctorError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_doctor' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lora_doctor.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
