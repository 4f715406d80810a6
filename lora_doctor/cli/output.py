"""From a diagnosis to what the user sees: the report, progress on stderr, and the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lora_doctor.cli import streams
from lora_doctor.cli.project import META, REPORTED, Project, settled, unused_ignores
from lora_doctor.text import visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

OK, FINDINGS, UNANSWERED = 0, 1, 2


def with_next_command(
    diagnosis: Diagnosis, options: dict[str, Any], written: Any = None
) -> Diagnosis:
    """With the command to type next; ``written``: the plan of the files, when they were."""
    from dataclasses import replace

    from lora_doctor.cli.next_command import next_command

    invoked = click.get_current_context()
    command = next_command(diagnosis, invoked.info_name or "", options, written)
    return replace(diagnosis, next_command=command)


def report(diagnosis: Diagnosis, options: dict[str, Any]) -> int:
    """Write the diagnosis where and how the options say; returns the exit code."""
    from lora_doctor.files import write_text
    from lora_doctor.results.formats import render

    meta = click.get_current_context().meta
    if META in meta:
        diagnosis = _with_unused(settled(diagnosis, meta[META]), meta[META])
    if options.get("baseline") is not None:
        diagnosis = _against(diagnosis, options["baseline"])
    meta.setdefault(REPORTED, []).append(diagnosis)

    def text_for(name: str, *, file: bool) -> str:
        text = render(
            diagnosis,
            name,
            color=not file and colors(streams.results()),
            width=_width(),
            verbose=options["verbose"],
            encoding="utf-8" if file else streams.results().encoding or "utf-8",
        )
        return text if not text or text.endswith("\n") else f"{text}\n"

    for name, file in options.get("outputs", ()):
        write_text(file, text_for(name, file=True))
    path = options["output_file"]
    if path is None:
        text = text_for(options["output_format"], file=False)
        streams.write(text, end="", foreign=not colors(streams.results()))
    else:
        write_text(path, text_for(options["output_format"], file=True))
    return exit_code(diagnosis, options["fail_on"])


def _with_unused(diagnosis: Diagnosis, project: Project) -> Diagnosis:
    """With a note on each ignore of the configuration that nothing was found for; those of several
    set-ups are told at the end of all of them."""
    from dataclasses import replace

    from lora_doctor.results.note import Note

    if len(project.set_ups) > 1:
        return diagnosis
    folders = click.get_current_context().params.get("rule_folders", ())
    notes = [Note("ignore", text) for text in unused_ignores(project, [diagnosis], folders)]
    return replace(diagnosis, notes=(*diagnosis.notes, *notes))


def _against(diagnosis: Diagnosis, file: str) -> Diagnosis:
    from lora_doctor.results.baseline import with_baseline
    from lora_doctor.results.stored import read_diagnosis

    return with_baseline(diagnosis, read_diagnosis(file), visible(file))


def exit_code(diagnosis: Diagnosis, fail_on: str) -> int:
    """After fixes that were written, what remains counts; otherwise what was found. Findings win
    over a question that stayed open."""
    from lora_doctor.results.finding import SEVERITIES

    applied = click.get_current_context().params.get("write", False)
    findings = diagnosis.findings
    if applied and diagnosis.remaining is not None:
        findings = diagnosis.remaining
    findings = diagnosis.not_accepted(findings)
    if fail_on != "never":
        line = SEVERITIES.index("error" if fail_on == "error" else "warning")
        if any(SEVERITIES.index(finding.severity) <= line for finding in findings):
            return FINDINGS
    return UNANSWERED if diagnosis.undetermined else OK


def with_progress(run: Callable[[Callable[[str], None]], Diagnosis]) -> Diagnosis:
    """Run with a line on stderr that says what is going on; none when it is no terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return run(lambda text: None)
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        return run(lambda text: status.update(escape(visible(text))))


def colors(stream: Any) -> bool:
    """Whether ANSI colours are wanted in what is written to this stream."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (
        stream.isatty() and os.environ.get("TERM") != "dumb"
    )


def _width() -> int:
    import shutil

    return min(shutil.get_terminal_size((100, 24)).columns, 120)
