"""``lora-doctor check`` without MODEL: every set-up of the project, one after the other."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lora_doctor.cli import streams
from lora_doctor.cli.joint_outputs import NONE, JointOutputs, baseline_of
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

_WORDS = {OK: "nothing found", FINDINGS: "findings", UNANSWERED: "undetermined"}


def check_all(group: click.Group, ctx: click.Context) -> int:
    """Check or dry-run every set-up; the last lines, on stderr, are a summary.

    Returns 1 where one has findings, else 2 where one could not be answered, else 0.

    Raises:
        InputError: there is no set-up, or the format of standard output holds one result only.
    """
    project: Project | None = ctx.meta.get(META)
    if project is None or not project.set_ups:
        raise InputError(
            "check: MODEL is missing; give one, or list set-ups in the project's configuration "
            "([tool.lora-doctor.set-ups.NAME] in pyproject.toml)"
        )
    shared = _given(ctx)
    several = len(project.set_ups) > 1
    joint = JointOutputs.of(ctx.params) if several else NONE
    from lora_doctor.api.children import shared_children

    codes, reported = {}, ctx.meta.setdefault(REPORTED, [])
    found: dict[str, Diagnosis] = {}
    with shared_children():
        for set_up in project.set_ups:
            own = joint.left_to(set_up.name, shared) if several else shared
            before = len(reported)
            codes[set_up.name], error = _check(group, ctx, set_up, own)
            found.update((set_up.name, one) for one in reported[before:])
            if error:  # a report without it would be taken for one in which nothing was found
                found[set_up.name] = _not_answered(set_up, error)
    joint.write(found, verbose=ctx.params["verbose"])
    if several and len(reported) == len(project.set_ups):
        for text in unused_ignores(project, reported):
            streams.tell(f"lora-doctor: note: {visible(text)}")
    for name, code in codes.items():
        words = _WORDS.get(code, f"exit code {code}")
        accepted = _accepted(found[name]) if name in found else ""
        streams.tell(f"lora-doctor: {visible(name)}: {words}{accepted}")
    return next((code for code in (FINDINGS, UNANSWERED) if code in codes.values()), OK)


def _check(
    group: click.Group, ctx: click.Context, set_up: SetUp, shared: dict[str, Any]
) -> tuple[int, str]:
    """The exit code, and why there is no diagnosis; empty where there is one."""
    name = "dry-run" if set_up.command else "check"
    ctx.meta[SET_UP] = set_up
    command = group.commands[name]
    defaults = for_set_up(ctx.meta[META], set_up, command, shared)
    if defaults.get("baseline") and len(ctx.meta[META].set_ups) > 1:
        defaults["baseline"] = baseline_of(defaults["baseline"], set_up.name)
    arguments = ["--", *shlex.split(set_up.command)] if set_up.command else [set_up.model]
    streams.tell(f"lora-doctor: set-up {visible(set_up.name)}: {visible(shlex.join(arguments))}")
    try:
        with command.make_context(
            name, arguments, parent=ctx.parent, default_map=defaults
        ) as inner:
            return int(click.Command.invoke(command, inner) or OK), ""
    except click.ClickException as error:
        told = error.format_message()
    except LoraDoctorError as error:
        told = str(error)
    streams.tell(f"lora-doctor: {visible(set_up.name)}: {told}")
    return UNANSWERED, told


def _not_answered(set_up: SetUp, error: str) -> Diagnosis:
    """What a report of several set-ups says of one that could not be checked."""
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.static.model_source import ModelSource

    source = ModelSource("folder", set_up.model or set_up.command)
    return Diagnosis(
        source, Recipe(), "static", {}, undetermined=f"the set-up was not checked: {error}"
    )


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
