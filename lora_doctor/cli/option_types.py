"""Types of the values of options, and how several of a kind are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from lora_doctor.results.formats import find_format, find_formats


class Number(click.FloatRange):
    """A float in a range; ``nan`` is in none, and ``inf`` is no limit that anybody can keep."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class ReportFormat(click.types.StringParamType):
    """A report format. They are looked for when one is needed, so that other commands neither pay
    for it nor fail on a broken format of another installed package."""

    name = "report format"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(find_formats())}]"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        name = str(super().convert(value, param, ctx))
        if find_format(name) is None:
            formats = ", ".join(map(repr, find_formats()))
            self.fail(f"{name!r} is not one of {formats}.", param, ctx)
        return name

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in find_formats() if name.startswith(incomplete)]


class Several(click.Option):
    """An option that may be given several times; one text, as a file has it, is one of them."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        return super().type_cast_value(ctx, [value] if isinstance(value, str) else value)


def joined(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> str | None:
    """As it is written in one: with commas."""
    return ",".join(values) if values else None


def outputs(
    ctx: click.Context, param: click.Parameter, values: tuple[str | tuple[str, str], ...]
) -> list[tuple[str, str]]:
    """Formats and files out of ``FORMAT=FILE``."""
    found = []
    for value in values:
        if isinstance(value, tuple):  # of the invocation that checks all set-ups
            found.append(value)
            continue
        name, sign, file = value.partition("=")
        if not sign or not file:
            raise click.BadParameter(f"{value!r} is not FORMAT=FILE, such as sarif=a.sarif.")
        if file == "-":
            raise click.BadParameter(
                f"{value!r}: on standard output is the result in --output-format; use that, or "
                f"{name}=./- for a file of this name."
            )
        found.append((ReportFormat().convert(name, param, ctx), file))
    return found
