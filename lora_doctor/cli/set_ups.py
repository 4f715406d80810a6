"""``lora-doctor check`` without MODEL: every set-up of the project, one after the other."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lora_doctor.cli import streams
from lora_doctor.cli.output import FINDINGS, OK, UNANSWERED
from lora_doctor.cli.project import (
    META,
    REPORTED,
    SET_UP,
    Project,
    SetUp,
    for_set_up,
    unused_ignores,
)
from lora_doctor.errors import InputError, LoraDoctorError
from lora_doctor.text import visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis

#: Formats of which several results can stand one after the other.
_JOINED = ("full", "concise", "grouped", "github", "json-lines", "markdown")
_WORDS = {OK: "nothing found", FINDINGS: "findings", UNANSWERED: "not answered"}


def check_all(group: click.Group, ctx: click.Context) -> int:
    """Check or dry-run every set-up; the last lines, on stderr, are a summary.

    Returns 1 where one has findings, else 2 where one could not be answered, else 0.

    Raises:
        InputError: there is no set-up, or the format holds one result only.
    """
    project: Project | None = ctx.meta.get(META)
    if project is None or not project.set_ups:
        raise InputError(
            "check: MODEL is missing; give one, or list set-ups in the project's configuration "
            "([tool.lora-doctor.set-ups.NAME] in pyproject.toml)"
        )
    shared = _given(ctx)
    several = len(project.set_ups) > 1
    if several and ctx.params["output_format"] not in _JOINED and not ctx.params["output_file"]:
        raise InputError(
            f"--output-format {ctx.params['output_format']} holds one result, the project has "
            f"{len(project.set_ups)} set-ups; take --output {ctx.params['output_format']}=FILE, "
            "which writes a file for each"
        )
    from lora_doctor.api.children import shared_children

    codes, reported = {}, ctx.meta.setdefault(REPORTED, [])
    accepted = {}
    with shared_children():
        for set_up in project.set_ups:
            own = _files_of(set_up, shared) if several else shared
            before = len(reported)
            codes[set_up.name] = _check(group, ctx, set_up, own)
            accepted[set_up.name] = "".join(map(_accepted, reported[before:]))
    if several and len(reported) == len(project.set_ups):
        for text in unused_ignores(project, reported):
            streams.tell(f"lora-doctor: note: {visible(text)}")
    for name, code in codes.items():
        words = _WORDS.get(code, f"exit code {code}")
        streams.tell(f"lora-doctor: {visible(name)}: {words}{accepted[name]}")
    return next((code for code in (FINDINGS, UNANSWERED) if code in codes.values()), OK)


def _check(group: click.Group, ctx: click.Context, set_up: SetUp, shared: dict[str, Any]) -> int:
    name = "dry-run" if set_up.command else "check"
    ctx.meta[SET_UP] = set_up
    command = group.commands[name]
    defaults = for_set_up(ctx.meta[META], set_up, command, shared)
    arguments = ["--", *shlex.split(set_up.command)] if set_up.command else [set_up.model]
    streams.tell(f"lora-doctor: set-up {visible(set_up.name)}: {visible(shlex.join(arguments))}")
    try:
        with command.make_context(
            name, arguments, parent=ctx.parent, default_map=defaults
        ) as inner:
            return int(click.Command.invoke(command, inner) or OK)
    except click.ClickException as error:
        streams.tell(f"lora-doctor: {visible(set_up.name)}: {error.format_message()}")
    except LoraDoctorError as error:
        streams.tell(f"lora-doctor: {visible(set_up.name)}: {error}")
    return UNANSWERED


def _accepted(diagnosis: Diagnosis) -> str:
    """``, 2 ignored``: what was found and fails nothing."""
    from lora_doctor.reports._words import accepted_count

    count = accepted_count(diagnosis)
    return f", {count}" if count else ""


def _given(ctx: click.Context) -> dict[str, Any]:
    """The options of this invocation, or of its environment, which win over every set-up's."""
    sources = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) in sources
    }


def _files_of(set_up: SetUp, shared: dict[str, Any]) -> dict[str, Any]:
    """Files that get the name of the set-up before their suffix: ``a.sarif``, ``a.sft.sarif``."""

    def own(file: str) -> str:
        path = Path(file)
        return str(path.with_name(f"{path.stem}.{_file_name(set_up.name)}{path.suffix}"))

    found = dict(shared)
    if found.get("outputs"):
        found["outputs"] = [(name, own(file)) for name, file in found["outputs"]]
    if found.get("output_file"):
        found["output_file"] = own(found["output_file"])
    return found


def _file_name(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name)
