"""The command that the user types next: every result ends in one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_doctor.results.diagnosis import Diagnosis, patches_of
from lora_doctor.results.finding import first_fix

if TYPE_CHECKING:
    from lora_doctor.prescription.write_fix import Plan

#: Options that carry the recipe and the way to the model, in the order in which they are shown.
_CARRIED = (
    "recipe_file", "task_type", "target_modules", "target_parameters", "exclude_modules",
    "modules_to_save", "r", "lora_alpha", "lora_dropout", "dtype", "attn_implementation",
    "model_class", "revision", "memory_budget", "per_device_train_batch_size", "max_length",
    "optim", "prescription",
)  # fmt: skip
_FLAGS = (
    "use_rslora", "use_dora", "load_in_4bit", "load_in_8bit", "gradient_checkpointing",
)  # fmt: skip
_SPELLING = {"recipe_file": "--recipe", "model_class": "--class"}


def next_command(
    diagnosis: Diagnosis, command: str, options: Mapping[str, Any], written: Plan | None
) -> str:
    """What to type after this result; empty when there is nothing left to do. ``written``: the
    files that ``fix --apply`` wrote."""
    if written is not None:
        words = ["lora-doctor", "verify", options["model"], "--recipe", str(written.recipe_path)]
        if patches_of(diagnosis):  # the recipe alone would not train
            words += ["--prescription", str(written.prescription_path)]
        words += ["--trust-remote-code"] if options["trust_remote_code"] else []
        return shlex.join(words)
    findings = [finding for finding in diagnosis.findings if finding.severity != "info"]
    if not findings:
        return _deeper(diagnosis, options)
    if any(first_fix(finding) for finding in findings):
        return shlex.join(["lora-doctor", "fix", *_arguments(options), "--apply"])
    if any(first_fix(finding, unsafe=True) for finding in findings):
        return shlex.join(["lora-doctor", "fix", *_arguments(options), "--unsafe-fixes", "--apply"])
    if command == "verify":
        return shlex.join(["lora-doctor", "check", *_arguments(options)])
    return shlex.join(["lora-doctor", "explain", findings[0].rule])


def _deeper(diagnosis: Diagnosis, options: Mapping[str, Any]) -> str:
    """After a shallow run without findings: the one that proves it."""
    if (
        diagnosis.model.kind == "script"
        or diagnosis.verdict == "healthy"
        or diagnosis.depth not in ("static", "meta")
    ):
        return ""
    return shlex.join(["lora-doctor", "check", *_arguments(options)])


def _arguments(options: Mapping[str, Any]) -> list[str]:
    words = [str(options["model"])]
    for key in _CARRIED:
        if options.get(key) is not None:
            words += [_SPELLING.get(key, f"--{key.replace('_', '-')}"), _text(options[key])]
    for key in _FLAGS:
        if options.get(key) is not None:
            name = key.replace("_", "-")
            words.append(f"--{name}" if options[key] else f"--no-{name}")
    if options.get("trust_remote_code"):
        words.append("--trust-remote-code")
    return words


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
