"""The command that the user types next: every result ends in one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.limits import DATA_ROWS
from lora_doctor.recipe.files.shell_syntax import SHELLS
from lora_doctor.recipe.keys import KEYS
from lora_doctor.results.diagnosis import Diagnosis, patches_of
from lora_doctor.results.finding import Finding, first_fix
from lora_doctor.static.adapter_files import weights_beside

if TYPE_CHECKING:
    from lora_doctor.prescription.write_fix import Plan


def next_command(
    diagnosis: Diagnosis, command: str, options: Mapping[str, Any], written: Plan | None
) -> str:
    """What to type after this result; empty when there is nothing left to do. ``written``: the
    files that ``fix --apply`` wrote."""
    if written is not None:
        return _verify(diagnosis, options, written)
    findings = [finding for finding in diagnosis.findings if finding.severity != "info"]
    if not findings:
        return _deeper(diagnosis, options)
    given = _without_arguments(options)
    arguments = _script_arguments(options)
    trained = _trained_folder(options["recipe_file"])
    if trained is not None:  # `fix` would not edit its config
        return shlex.join(["lora-doctor", "check", str(options["model"]), "--adapter", trained])
    if options.get("adapter") is not None:
        in_folder = Path(options["adapter"]).is_dir()  # of one on the hub only the header is here
        written_anew = any(fix.writes_adapter for fix in findings[0].fixes)
        if in_folder and written_anew and not options.get("write"):
            return shlex.join(["lora-doctor", "fix", *given, "--apply", *arguments])
        return shlex.join(["lora-doctor", "explain", findings[0].rule])
    if any(first_fix(finding) for finding in findings) or (
        command != "fix" and any(map(_to_be_tried, findings))
    ):
        return shlex.join(["lora-doctor", "fix", *given, "--apply", *arguments])
    if any(first_fix(finding, unsafe=True) for finding in findings):
        return shlex.join(["lora-doctor", "fix", *given, "--unsafe-fixes", "--apply", *arguments])
    if command == "verify":
        return shlex.join(["lora-doctor", "check", *given, *arguments])
    return shlex.join(["lora-doctor", "explain", findings[0].rule])


def _verify(diagnosis: Diagnosis, options: Mapping[str, Any], written: Plan) -> str:
    """The run that proves what was written; a check where something is left to mend by hand, which
    ``verify`` would not see: it asks the training contract only."""
    left = [
        item
        for item in diagnosis.not_accepted(diagnosis.remaining or ())
        if item.severity != "info"
    ]
    words = ["lora-doctor", "check" if left else "verify", str(options["model"])]
    path = str(written.recipe_path)
    starts_it = Path(words[-1]).suffix.lower() in SHELLS and Path(path).suffix == ".py"
    if path != words[-1] and not starts_it:  # a script, or the file of a framework, is both
        words += ["--recipe", str(written.recipe_path)]
    if options.get("format_name") is not None:
        words += ["--format", options["format_name"]]
    if patches_of(diagnosis):  # the recipe alone would not train
        words += ["--prescription", str(written.prescription_path)]
    return shlex.join([*words, *_way(options), *_script_arguments(options)])


def _to_be_tried(finding: Finding) -> bool:
    """Whether ``fix`` has a fix to run that this run has not."""
    return any(
        fix.safety == "unproven" and fix.executed.outcome == "not-executed" for fix in finding.fixes
    )


def _trained_folder(recipe_file: str | None) -> str | None:
    """The folder of the adapter whose config the recipe is; ``None`` where it has no weights."""
    if recipe_file is None or weights_beside(Path(recipe_file)) is None:
        return None
    return str(Path(recipe_file).parent)


def _deeper(diagnosis: Diagnosis, options: Mapping[str, Any]) -> str:
    """After a run without findings: the deeper one that proves it, and for a script, which was
    read, the one that runs it."""
    if diagnosis.verdict == "healthy" and diagnosis.model.script:
        return _dry_run(diagnosis.model.script, options)
    if (
        diagnosis.model.kind == "script"
        or diagnosis.verdict == "healthy"
        or diagnosis.depth not in ("static", "meta")
    ):
        return ""
    return shlex.join(["lora-doctor", "check", *command_line(options)])


def _dry_run(script: str, options: Mapping[str, Any]) -> str:
    if Path(script).suffix != ".py":
        return shlex.join(["lora-doctor", "dry-run", script])
    given = options.get("script_arguments") or ()
    model = str(options["model"])
    start = ["bash", model] if Path(model).suffix.lower() in SHELLS else ["python", script]
    return shlex.join(["lora-doctor", "dry-run", "--", *start, *given])


def command_line(options: Mapping[str, Any]) -> list[str]:
    """The model, its recipe and the way to it, as the command line gave them."""
    return [*_without_arguments(options), *_script_arguments(options)]


def _script_arguments(options: Mapping[str, Any]) -> list[str]:
    """The words that a training script is started with, behind ``--``."""
    given = options.get("script_arguments") or ()
    return ["--", *given] if given else []


def _without_arguments(options: Mapping[str, Any]) -> list[str]:
    words = [str(options["model"])]
    if options.get("format_name") is not None:
        words += ["--format", options["format_name"]]
    if options["recipe_file"] is not None:
        words += ["--recipe", options["recipe_file"]]
    for key in KEYS:
        if options.get(key.name) is not None:
            words += key.words(options[key.name])
    for name in ("revision", "adapter", "prescription", "data", "eval_data"):
        if options.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    if options.get("data") is not None:
        words += _of_data(options)
    if options.get("memory"):
        words.append("--memory")
    return [*words, *_way(options)]


def _of_data(options: Mapping[str, Any]) -> list[str]:
    """How many rows of the data are looked at, and who sees them, where that was chosen."""
    rows = options.get("rows")
    words = ["--rows", str(rows)] if rows not in (None, DATA_ROWS) else []
    samples = options.get("samples")
    return words if samples is None else [*words, "--samples" if samples else "--no-samples"]


def _way(options: Mapping[str, Any]) -> list[str]:
    """What has to be said again so that the same is run: the code, and the real weights."""
    words = ["--trust-remote-code"] if options["trust_remote_code"] else []
    return [*words, "--depth", "full"] if options.get("depth") == "full" else words
