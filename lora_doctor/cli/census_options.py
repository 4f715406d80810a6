"""The options of ``lora-doctor census``."""

from __future__ import annotations

import os

import click

from lora_doctor.cli.options import F, with_options
from lora_doctor.errors import InputError


def refuse_arguments(*repeated: tuple[str, tuple[str, ...]]) -> None:
    """Of a command that takes options only: names that follow the first one of an option.

    Raises:
        InputError: there are such names; says how an option that can be repeated takes them.
    """
    extra = click.get_current_context().args
    if not extra:
        return
    given = next(((name, values) for name, values in repeated if values), None)
    message = f"unexpected argument {extra[0]!r}"
    if given is not None:
        name, values = given
        spelled = " ".join(f"{name} {value}" for value in (*values, *extra))
        message += f"; one name for each {name}: {spelled}"
    raise InputError(message)


def census_options(command: F) -> F:
    """Which architectures, where they are tried, and where the table goes."""
    options = [
        click.option(
            "--select",
            metavar="NAME",
            multiple=True,
            help="Model types or auto classes, as patterns such as 'qwen*'.  [default: all]",
        ),
        click.option(
            "--class",
            "classes",
            metavar="AUTO_CLASS",
            multiple=True,
            help="Auto classes to try, as patterns such as 'AutoModelFor*'.  [default: those "
            "for generation]",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(1),
            default=lambda: os.cpu_count() or 1,
            show_default="number of cores",
            help="Parallel processes.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Where to run: on this machine, or on a Ray cluster.",
        ),
        click.option(
            "-o",
            "--output-dir",
            metavar="DIR",
            default="lora-doctor-census",
            show_default=True,
            help="Folder for the table; an interrupted run is continued there.",
        ),
        click.option(
            "--keep-models",
            metavar="DIR",
            help="Also keep each tiny model and its batch, to check them by other means.",
        ),
    ]
    return with_options(options, command)
