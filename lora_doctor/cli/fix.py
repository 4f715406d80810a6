"""``lora-doctor fix``: fixes found, proved and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lora_doctor.cli import streams
from lora_doctor.cli.arguments import check_options, program_of, recipe_of
from lora_doctor.cli.given_command import command_of
from lora_doctor.cli.output import (
    UNANSWERED,
    exit_code,
    report,
    with_next_command,
    with_progress,
)
from lora_doctor.cli.project import codes_ignored
from lora_doctor.cli.unfinished import tell_of_unfinished

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis


def run(options: dict[str, Any]) -> int:
    """Fix a recipe, or with ``--adapter`` a saved adapter; returns the exit code."""
    if options["adapter"] is not None:
        return _fix_adapter(options)
    command = command_of(options)
    if command:
        from lora_doctor.cli.fix_command import fix_command

        return fix_command(options, command, run)
    from lora_doctor import api
    from lora_doctor.engine.set_up import edited_file
    from lora_doctor.prescription import write_fix

    format = options["format_name"]
    named = options["recipe_file"] or program_of(options) or options["model"]
    file = edited_file(named, format) or options["recipe_file"] or program_of(options)
    plan = write_fix.Plan.make(file, options["output_dir"], options["write"], format)

    tell_of_unfinished(options)

    def ask(tell: Callable[[str], None]) -> Diagnosis:
        call_options = check_options(options, tell)
        return api.fix(
            options["model"],
            recipe_of(options),
            unsafe_fixes=options["unsafe_fixes"],
            unfixed=codes_ignored(click.get_current_context().meta),
            **call_options,
        )

    diagnosis = plan.with_diff(with_progress(ask))
    if options["write"]:
        diagnosis = plan.as_written(diagnosis)
    holds = plan if diagnosis.written_to else None
    diagnosis = with_next_command(diagnosis, options, holds)
    written = plan.write(diagnosis) if options["write"] else ()
    if options["only_diff"]:
        code = exit_code(diagnosis, options["fail_on"])
        _show_diff(diagnosis, code)
    else:
        code = report(diagnosis, options)
    for path in written:
        streams.tell(f"wrote {path}")
    return code


def _show_diff(diagnosis: Diagnosis, code: int) -> None:
    """The diff, and on standard error why there is none."""
    streams.write(diagnosis.recipe_diff, end="")
    if code == UNANSWERED:  # the diff has no place for the reason
        streams.tell(f"lora-doctor: undetermined: {diagnosis.undetermined}")
    elif diagnosis.findings and not diagnosis.recipe_diff:
        following = f"; next: {diagnosis.next_command}" if diagnosis.next_command else ""
        streams.tell(f"lora-doctor: no fix would be applied, so there is no diff{following}")


def _fix_adapter(options: dict[str, Any]) -> int:
    from pathlib import Path

    from lora_doctor import api
    from lora_doctor.prescription.adapter_folder import fixed_folder

    into = fixed_folder(Path(options["adapter"]).expanduser()) if options["write"] else None

    def ask(tell: Callable[[str], None]) -> Diagnosis:
        call_options = check_options(options, tell)
        return api.fix_adapter(options["model"], recipe_of(options), into=into, **call_options)

    diagnosis = with_progress(ask)
    written = into is not None and into.exists()
    given = {**options, "adapter": str(into)} if written else options
    code = report(with_next_command(diagnosis, given), given)
    if written:
        streams.tell(f"wrote {into}")
    return code
