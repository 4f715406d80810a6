"""LD709: a setting of the adapter needs a package that is not installed."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    missing_name,
)

#: Keys that need no package; any other key may be the one that does.
_EVERYDAY = frozenset(
    {"target_modules", "r", "lora_alpha", "lora_dropout", "task_type", "dtype", "peft_type", "bias"}
)


class PackageForSettingMissing(Rule):
    """PEFT rejects the adapter config, because one of its settings needs a package that is not
    installed.

    ## What happens
    `LoraConfig(init_lora_weights="loftq")` raises `ImportError: The required package 'scipy' is not
    installed` when the config is created, before any model is loaded.

    ## Why
    Packages that only some settings need are not among PEFT's requirements, so pip does not install
    them with PEFT.

    ## Versions
    All versions of PEFT.

    ## Fix
    Install the package that the message names.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/lora
    """

    code = "LD709"
    name = "package-for-setting-missing"
    summary = "A setting of the adapter needs a package that is not installed."
    depth = "meta"
    symptoms = (
        Symptom(r"The required package '[\w.\-]+' is not installed"),
        Symptom(r"scikit-learn is required for AdaMSS"),
        Symptom(r"bitsandbytes is not available, please install it to use LoftQ"),
        Symptom(
            r"To use (?:\w+|\(IA\)\^3) with (?:8-bit|4-bit|8-bit or 4-bit) quantization, please "
            r"install",
            "PEFT before 0.15",
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": "loftq"},
            why="scipy is not a requirement of PEFT",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}, depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        error = case.structure.injection.error
        if error is None or error.type not in ("ImportError", "ModuleNotFoundError"):
            return
        package = missing_name(error.message)
        if not package:
            return
        asking = [key for key in case.written.values if key not in _EVERYDAY]
        place = Location("environment", package)
        yield self.finding(
            "error",
            f"PEFT needs {package} for this adapter config, and it is not installed.",
            location=Location("recipe", asking[0]) if len(asking) == 1 else place,
            evidence=(Measurement("raised", str(error), error.where),),
            proof=Proof(
                "executed", "PEFT rejected the config on the full-size model, on the meta device"
            ),
            fixes=(Fix(f"pip install {package}", "manual"),),
            explains=("attaches",),
        )
