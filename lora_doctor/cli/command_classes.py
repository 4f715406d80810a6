"""The classes of the group and its commands: standard output is kept for results."""

from __future__ import annotations

from typing import Any

import click

from lora_doctor.cli import streams


class Interrupted(Exception):
    """A command was interrupted: click would write to standard error by itself."""

    def __init__(self, by: KeyboardInterrupt) -> None:
        super().__init__()
        self.by = by


class Command(click.Command):
    """A command that keeps standard output for its results."""

    def invoke(self, ctx: click.Context) -> Any:
        with streams.results_apart(give_back=bool(ctx.obj)):
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as stop:
                raise Interrupted(stop) from stop
            except EOFError as error:  # click would take it for Ctrl-D
                raise RuntimeError(f"EOFError: {error}") from error


class Group(click.Group):
    command_class = Command
