"""lora-doctor: finds, fixes and proves what would go wrong in a LoRA fine-tuning run.

    import lora_doctor

    diagnosis = lora_doctor.check("arch:phi3", {"target_modules": ["q_proj", "v_proj"]})
    diagnosis = lora_doctor.fix("./my-model", "recipe.yaml")
    verification = lora_doctor.verify(my_module, lora_config)
    lora_doctor.apply("lora-doctor.prescription.json")   # first line of a training script
    Trainer(..., callbacks=[lora_doctor.callback()])      # judged and watched while it trains

``print(diagnosis)`` is the report of the command line; in a notebook the last value of a cell shows
it as a page. Errors: see :mod:`lora_doctor.errors`. To write a rule: :mod:`lora_doctor.rule_api`.

Nothing heavy is imported before a function is called.
"""

# No import here that `python -m lora_doctor` could take from the working directory: __main__ takes
# that off the path only after this module has run.
from typing import TYPE_CHECKING, Any

from lora_doctor._version import __version__

if TYPE_CHECKING:
    from lora_doctor.api import check, fix, verify
    from lora_doctor.engine.limits import Limits
    from lora_doctor.errors import (
        ConfigError,
        EvidenceError,
        FactoryError,
        HalfDoneError,
        InputError,
        LimitError,
        LoraDoctorError,
        ModelClassError,
        NotPythonError,
        PatchError,
        TrainingStopped,
    )
    from lora_doctor.live.callback import callback
    from lora_doctor.live.watch import watch
    from lora_doctor.prescription.apply import Applied, apply
    from lora_doctor.recipe.files.prescription import Prescription
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.finding import Finding
    from lora_doctor.results.stored import read_diagnosis
    from lora_doctor.results.verification import Verification
    from lora_doctor.sandbox.worker import Worker

__all__ = [
    "Applied",
    "ConfigError",
    "Diagnosis",
    "EvidenceError",
    "FactoryError",
    "Finding",
    "HalfDoneError",
    "InputError",
    "LimitError",
    "Limits",
    "LoraDoctorError",
    "ModelClassError",
    "NotPythonError",
    "PatchError",
    "Prescription",
    "Recipe",
    "TrainingStopped",
    "Verification",
    "Worker",
    "__version__",
    "apply",
    "callback",
    "check",
    "fix",
    "read_diagnosis",
    "verify",
    "watch",
]

_HOMES = {
    "check": "api",
    "fix": "api",
    "verify": "api",
    "apply": "prescription.apply",
    "callback": "live.callback",
    "watch": "live.watch",
    "Applied": "prescription.apply",
    "Diagnosis": "results.diagnosis",
    "Finding": "results.finding",
    "Limits": "engine.limits",
    "read_diagnosis": "results.stored",
    "Prescription": "recipe.files.prescription",
    "Recipe": "recipe.recipe",
    "Verification": "results.verification",
    "Worker": "sandbox.worker",
    "EvidenceError": "errors",
    "HalfDoneError": "errors",
    "InputError": "errors",
    "LimitError": "errors",
    "ConfigError": "errors",
    "LoraDoctorError": "errors",
    "FactoryError": "errors",
    "ModelClassError": "errors",
    "NotPythonError": "errors",
    "PatchError": "errors",
    "TrainingStopped": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_doctor' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lora_doctor.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
