"""lora-doctor: finds, fixes and proves what would go wrong in a LoRA fine-tuning run.

    import lora_doctor

    diagnosis = lora_doctor.check("arch:phi3", {"target_modules": ["q_proj", "v_proj"]})
    diagnosis = lora_doctor.fix("./my-model", "recipe.yaml")
    verification = lora_doctor.verify(my_module, lora_config)
    lora_doctor.apply("lora-doctor.prescription.json")   # first line of a training script

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_doctor.api import check, fix, verify
    from lora_doctor.diagnosis import Diagnosis
    from lora_doctor.errors import EvidenceError, InputError, LoraDoctorError
    from lora_doctor.prescription import apply
    from lora_doctor.recipe import Recipe
    from lora_doctor.verification import Verification

__version__ = "0.1.0"
__all__ = [
    "Diagnosis",
    "EvidenceError",
    "InputError",
    "LoraDoctorError",
    "Recipe",
    "Verification",
    "apply",
    "check",
    "fix",
    "verify",
]

_HOMES = {
    "check": "api",
    "fix": "api",
    "verify": "api",
    "apply": "prescription",
    "Diagnosis": "diagnosis",
    "Recipe": "recipe",
    "Verification": "verification",
    "EvidenceError": "errors",
    "InputError": "errors",
    "LoraDoctorError": "errors",
}

# In a checkout, rules/ and reports/ stand beside the package instead of in it. An installed wheel
# has them inside, and this does nothing.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "rules" / "__init__.py").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_doctor' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lora_doctor.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
