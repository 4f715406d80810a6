"""LD705: transformers' adapter methods refuse the installed PEFT."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.static.installed.peft_minimum import peft_minimum


class TransformersAsksForNewerPeft(Rule):
    """A training script calls `model.add_adapter` or a similar method, and the installed
    transformers does not accept the installed PEFT there.

    ## What happens
    `ValueError: The version of PEFT you are using is not compatible, please use a version >=
    0.22.0`, at the first call. `get_peft_model` works: PEFT's own functions do not check this.

    ## Why
    transformers requires a minimum version of PEFT for its adapter mixin, and checks it in each of
    the methods. pip does not check it. A release may even require a PEFT that is not published yet.

    ## Versions
    transformers 5.24 requires PEFT 0.22, 5.23 requires 0.20, 4.57 requires 0.5. Both versions are
    read from the installed packages.

    ## Fix
    Install that PEFT. Where there is none yet: the transformers release before, or
    `peft.get_peft_model(model, config)` and `PeftModel.from_pretrained` in place of the methods.

    ## Links
    https://huggingface.co/docs/transformers/peft
    """

    code = "LD705"
    name = "transformers-asks-for-newer-peft"
    summary = "The script calls a method of transformers that does not accept the installed PEFT."
    depth = "static"
    symptoms = (
        Symptom(r"version of PEFT you are using is not compatible, please use a version"),
        Symptom(r"Could not load adapter model, make sure to have PEFT >= ?[\d.]+ installed"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/adapter_by_transformers.py",
            requires={"transformers": ">=5.24", "peft": "<0.22"},
            depth="static",
        ),
        Example(
            "healthy",
            "tests/scripts/adapter_by_transformers.py",
            requires={"transformers": "<5.24"},
            depth="static",
        ),
        Example("healthy", "tests/scripts/adapters_first.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        script = case.script
        minimum = peft_minimum()
        installed = case.environment.version("peft")
        version = case.environment.version("transformers") or ""
        if minimum is None or installed is None:
            raise EvidenceError("transformers and PEFT are not both installed", remedy="package")
        if not script.adapter_calls or not _is_older(installed, minimum.version):
            return
        first = script.adapter_calls[0]
        source = f"{script.path.name}:{first.line}"
        yield self.finding(
            "error",
            f"{first.model}.{first.method} raises: transformers {version} requires PEFT "
            f"{minimum.version} or newer there, and {installed} is installed.",
            location=Location("file", str(script.path), first.line),
            evidence=(
                Measurement("the line", first.code, source),
                Measurement(f"{first.model} is loaded by", first.model_class, script.path.name),
                Measurement("minimum version of PEFT", minimum.version,
                            f"transformers {version}, integrations/peft.py"),
                Measurement("installed", f"peft {installed}", "package metadata"),
            ),
            proof=Proof("measured", "both versions were read from the installed packages"),
            fixes=(
                Fix(f"pip install 'peft>={minimum.version}'", "manual"),
                Fix(
                    f"If PyPI has none yet: pip install 'transformers<{version}', or in place "
                    f"of {first.method} use peft.get_peft_model(model, config) or "
                    "PeftModel.from_pretrained, which do not check the version.",
                    "manual",
                ),
            ),
        )  # fmt: skip


def _is_older(installed: str, least: str) -> bool:
    """As transformers compares them."""
    try:
        return Version(installed) < Version(least)
    except InvalidVersion:
        return False
