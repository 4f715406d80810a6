"""From the options of the command line to the arguments of the API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lora_doctor.recipe.keys import KEYS

if TYPE_CHECKING:
    from lora_doctor.api.options import CheckOptions
    from lora_doctor.dry_run.judge import DryRunOptions
    from lora_doctor.engine.limits import Limits
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.samples import Samples

#: ``--samples``, ``--no-samples``, neither.
_SAMPLES: Mapping[bool | None, Samples] = {True: "all", False: "none", None: "people"}


def check_options(options: Mapping[str, Any], progress: Callable[[str], None]) -> CheckOptions:
    """The options of the API's functions.

    Raises:
        InputError: a file that the result shall go to could not be written later.
    """
    check_outputs(options)
    found: CheckOptions = {
        "revision": options["revision"],
        "format": options.get("format_name"),
        "trust_remote_code": options["trust_remote_code"],
        "limits": _limits(options),
        "device": options["device"],
        "steps": options["steps"],
        "memory": options.get("memory", False),
        "prescription": options.get("prescription"),
        "adapter": options.get("adapter"),
        "script_arguments": options["script_arguments"],
        "data": options.get("data"),
        "eval_data": options.get("eval_data"),
        "samples": _SAMPLES[options.get("samples")],
        "budgets": _budgets(),
        "progress": progress,
        "select": _codes(options["select"]),
        "ignore": _codes(options["ignore"]),
        "rules": options["rule_folders"],
        "strict": options["strict"],
        "depth": options["depth"],
    }
    if "rows" in options:
        found["rows"] = options["rows"]
    return found


def dry_run_options(options: Mapping[str, Any]) -> DryRunOptions:
    """The options of a dry run.

    Raises:
        InputError: a file that the result shall go to could not be written later.
    """
    from lora_doctor.dry_run.judge import DEFAULT_SECONDS, DryRunOptions
    from lora_doctor.engine.limits import DEFAULT_MEMORY, GIB

    check_outputs(options)
    return DryRunOptions(
        rows=options["rows"],
        synthetic_data=options["synthetic_data"],
        check_resume=options["check_resume"],
        seconds=options["time_limit"] or DEFAULT_SECONDS,
        memory=int(options["memory_limit"] * GIB) if options["memory_limit"] else DEFAULT_MEMORY,
        check={
            "select": _codes(options["select"]),
            "ignore": _codes(options["ignore"]),
            "rules": options["rule_folders"],
            "strict": options["strict"],
            "budgets": _budgets(),
        },
    )


def _budgets() -> Mapping[str, Any] | None:
    """Of the project's configuration, for what is checked now."""
    import click

    from lora_doctor.cli.project import budgets_of

    return budgets_of(click.get_current_context().meta)


def check_outputs(options: Mapping[str, Any]) -> None:
    """Before anything is run: a result that cannot be written, or be held against the baseline, is
    a run for nothing."""
    from lora_doctor.errors import InputError
    from lora_doctor.files import check_writable

    if options.get("baseline") is not None:
        from lora_doctor.results.stored import read_diagnosis

        read_diagnosis(options["baseline"])

    files = [file for _, file in options.get("outputs", ())]
    if options.get("output_file") is not None:
        files.append(options["output_file"])
    for number, file in enumerate(files):
        if file in files[:number]:
            raise InputError(f"{file}: would hold two results; write one of them to another file")
        check_writable(file)


def recipe_of(options: Mapping[str, Any]) -> Recipe:
    """The recipe that the command line gives: a file, and the options that win over it.

    Raises:
        InputError: the file is no recipe, or a value cannot be its key's.
    """
    from lora_doctor.recipe.recipe import make_recipe

    given = {
        key.name: key.option.read(options[key.name], key.spelling)
        for key in KEYS
        if key.option and options.get(key.name) is not None
    }
    checked = make_recipe(given, where="options", origin="option")
    return _recipe_of_file(options).override(checked.values, "option")


def program_of(options: Mapping[str, Any]) -> str | None:
    """The script or notebook that MODEL is; ``None`` where it is none."""
    from pathlib import Path

    from lora_doctor.recipe.program.setup import is_program

    path = Path(str(options["model"])).expanduser()
    return str(path) if is_program(path) and path.is_file() else None


def describes_weights(options: Mapping[str, Any]) -> bool:
    """Whether the recipe file is the config of an adapter that is trained already."""
    from pathlib import Path

    from lora_doctor.static.adapter_files import weights_beside

    given = options["recipe_file"]
    return given is not None and weights_beside(Path(given)) is not None


def _recipe_of_file(options: Mapping[str, Any]) -> Recipe:
    """The recipe in ``--recipe``, or else in ``--prescription``; empty without either."""
    from pathlib import Path

    from lora_doctor.recipe.recipe import Recipe, make_recipe

    if options["recipe_file"]:
        from lora_doctor.recipe.files.read_write import read_recipe

        return read_recipe(Path(options["recipe_file"]), options.get("format_name"))
    where = options.get("prescription")
    if not where:
        return Recipe()
    from lora_doctor.prescription.apply import checked_prescription

    return make_recipe(checked_prescription(where).recipe, where=where, origin="file")


def _limits(options: Mapping[str, Any]) -> Limits:
    from dataclasses import replace

    from lora_doctor.engine.limits import GIB, Limits

    limits = Limits(hub_seconds=options["hub_time_limit"])
    if options["time_limit"]:
        seconds = options["time_limit"]
        limits = replace(limits, meta_seconds=seconds, tiny_seconds=seconds, full_seconds=seconds)
    if options["memory_limit"]:
        limits = replace(limits, memory=int(options["memory_limit"] * GIB))
    return limits


def _codes(text: str) -> tuple[str, ...]:
    return tuple(code.strip().upper() for code in text.split(",") if code.strip())
