"""``lora-doctor check`` and ``fix`` without MODEL: every set-up of the project, one after the
other."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lora_doctor.cli import streams
from lora_doctor.cli.given_command import file_of
from lora_doctor.cli.joint_outputs import NONE, JointOutputs, baseline_of, folder_of
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


def run_all(group: click.Group, ctx: click.Context) -> int:
    """The command of ``ctx`` for every set-up, where ``check`` dry-runs those that are a training
    command; the last lines, on stderr, are a summary.

    The paths of the configuration are read from its folder, those of the command line from here.

    Returns 1 where one has findings, else 2 where one could not be answered, else 0.

    Raises:
        InputError: there is no set-up, or the format of standard output holds one result only.
    """
    project: Project | None = ctx.meta.get(META)
    if project is None or not project.set_ups:
        raise InputError(
            f"{ctx.command.name}: MODEL is missing; give one, or list set-ups in the project's "
            "configuration ([tool.lora-doctor.set-ups.NAME] in pyproject.toml)"
        )
    with _in_folder_of(project, ctx):
        return _run_set_ups(group, ctx, project)


def _run_set_ups(group: click.Group, ctx: click.Context, project: Project) -> int:
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
            codes[set_up.name], error = _run(group, ctx, set_up, own)
            found.update((set_up.name, one) for one in reported[before:])
            if error:  # a report without it would be taken for one in which nothing was found
                found[set_up.name] = _not_answered(set_up, error)
    joint.write(found, verbose=ctx.params["verbose"])
    if several:
        every = reported if len(reported) == len(project.set_ups) else []
        for text in unused_ignores(project, every, ctx.params.get("rule_folders", ())):
            streams.tell(f"lora-doctor: note: {visible(text)}")
    for name, code in codes.items():
        words = _WORDS.get(code, f"exit code {code}")
        if name in found:
            words = _outcome(found[name], words, project.file.name)
        streams.tell(f"lora-doctor: {visible(name)}: {words}")
    return next((code for code in (FINDINGS, UNANSWERED) if code in codes.values()), OK)


def _run(
    group: click.Group, ctx: click.Context, set_up: SetUp, shared: dict[str, Any]
) -> tuple[int, str]:
    """The exit code, and why there is no diagnosis; empty where there is one."""
    project: Project = ctx.meta[META]
    ctx.meta[SET_UP] = set_up
    read = for_set_up(project, set_up, ctx.command, shared)
    is_read = not set_up.command or read.get("depth") == "static"
    is_dry_run = not is_read and ctx.command.name == "check"
    name = "dry-run" if is_dry_run else str(ctx.command.name)
    command = group.commands[name]
    defaults = for_set_up(project, set_up, command, shared) if is_dry_run else read
    if defaults.get("baseline") and len(project.set_ups) > 1:
        defaults["baseline"] = baseline_of(defaults["baseline"], set_up.name)
    if name == "fix":  # each writes files of the same names
        defaults["output_dir"] = folder_of(ctx.params["output_dir"], set_up.name)
    told = set_up.model or f"-- {set_up.command}"
    streams.tell(f"lora-doctor: set-up {visible(set_up.name)}: {visible(told)}")
    try:
        arguments = _arguments(set_up, is_read=is_read)
        with (
            _made(defaults["output_dir"] if ctx.params.get("write") else "."),
            command.make_context(name, arguments, parent=ctx.parent, default_map=defaults) as inner,
        ):
            return int(click.Command.invoke(command, inner) or OK), ""
    except click.ClickException as error:
        told = error.format_message()
    except LoraDoctorError as error:
        told = str(error)
    streams.tell(f"lora-doctor: {visible(set_up.name)}: {told}")
    return UNANSWERED, told


@contextmanager
def _made(folder: str) -> Iterator[None]:
    """The folder and those above it, and none of them afterwards that is empty."""
    from contextlib import suppress

    path = Path(folder)
    made = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty: the set-up's files are in it
            for one in made:
                one.rmdir()


def _arguments(set_up: SetUp, *, is_read: bool) -> list[str]:
    """What follows the name of the command that checks this set-up; at depth static nothing is run,
    and of a training command the file that it names is read."""
    words = shlex.split(set_up.command)
    if not is_read:
        return ["--", *words]
    if not words:
        return [set_up.model]
    try:
        file, given = file_of(words)
    except InputError as error:
        reason = str(error).partition(";")[0]
        raise InputError(f"at depth static the command is not run, and {reason}") from None
    return [file, "--", *given] if given else [file]


@contextmanager
def _in_folder_of(project: Project, ctx: click.Context) -> Iterator[None]:
    """Work in the folder of the configuration; the files of the command line stay what they are."""
    here, folder = Path.cwd(), project.file.parent
    if folder == here:
        yield
        return
    files = [one.name for one in ctx.command.params if one.name and _names_a_file(one)]
    for name in files:
        ctx.params[name] = _from(here, ctx.params[name])
    ctx.params["outputs"] = tuple((name, str(here / file)) for name, file in ctx.params["outputs"])
    streams.tell(f"lora-doctor: set-ups of {visible(os.path.relpath(project.file))}, in its folder")
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def _names_a_file(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.metavar in ("FILE", "DIR")


def _from(folder: Path, value: Any) -> Any:
    """The paths of an option, or none, as they are found from anywhere."""
    if isinstance(value, str):
        return str(folder / value)
    return tuple(str(folder / one) for one in value) if value else value


def _not_answered(set_up: SetUp, error: str) -> Diagnosis:
    """What a report of several set-ups says of one that could not be checked."""
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.static.model_source import ModelSource

    source = ModelSource("folder", set_up.model or set_up.command)
    return Diagnosis(
        source, Recipe(), "static", {}, undetermined=f"the set-up was not checked: {error}"
    )


def _outcome(diagnosis: Diagnosis, words: str, configuration: str) -> str:
    """What became of a set-up: ``nothing found, 2 ignored``, or that it was fixed and where."""
    from lora_doctor.prescription.write_fix import RECIPE_NAME
    from lora_doctor.reports._words import accepted_count

    if diagnosis.written_to:
        file = diagnosis.written_to[0]
        left = "" if words == _WORDS[OK] else f", {words} left"
        words = f"fixed in {visible(file)}{left}"
        if Path(file).name == RECIPE_NAME:  # its settings are in the configuration, a gate's file
            words += f"; name it as its recipe in {configuration}, in place of the settings there"
    count = accepted_count(diagnosis)
    return f"{words}, {count}" if count else words


def _given(ctx: click.Context) -> dict[str, Any]:
    """The options of this invocation, or of its environment, which win over every set-up's."""
    sources = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) in sources
    }
