"""The arguments of a function of the user's: given, by default, or by the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import libcst as cst

from lora_doctor.static.program.config_files import hydra_config
from lora_doctor.static.program.parsed_words import given_fields
from lora_doctor.static.program.values import (
    OPTION,
    Argument,
    Function,
    Items,
    Known,
    Mapping,
    Thing,
    Unknown,
    Value,
    through,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context


def bound_arguments(
    follower: Context,
    function: Function,
    positional: Sequence[Argument],
    keywords: dict[str, Argument],
) -> dict[str, Value]:
    """Each parameter's name with its value; what nobody gives is not known."""
    parameters = function.node.params
    options = command_line_defaults(follower, function)
    given: list[Value] = [item.value for item in positional]
    if function.owner is not None:
        given.insert(0, function.owner)
    found: dict[str, Value] = {}
    ordered = [*parameters.posonly_params, *parameters.params]
    for parameter in (*ordered, *parameters.kwonly_params):
        name = parameter.name.value
        if parameter in ordered and given:
            found[name] = given.pop(0)
        elif name in keywords:
            found[name] = keywords[name].value
        elif name in options:
            found[name] = options[name]
        else:
            found[name] = _default(follower, function, parameter)
    if isinstance(parameters.star_kwarg, cst.Param):
        rest = {name: one.value for name, one in keywords.items() if name not in found}
        spans = {name: (keywords[name].span, keywords[name].whole) for name in rest}
        found[parameters.star_kwarg.name.value] = Mapping(rest, spans=spans)
    if isinstance(parameters.star_arg, cst.Param):
        found[parameters.star_arg.name.value] = Items(given, "tuple")
    return found


def _default(follower: Context, function: Function, parameter: cst.Param) -> Value:
    name = parameter.name.value
    kept, follower.unit = follower.unit, function.unit
    try:
        if parameter.default is None:
            config = hydra_config(follower, function)
            if config is not None:
                return config
            return follower.unknown(parameter.name, _pass(name))
        found = follower.value(parameter.default)
    finally:
        follower.unit = kept
    if isinstance(found, Thing) and found.made_by in ("typer.Option", "typer.Argument"):
        default = found.call.value("default", 0)
        required = isinstance(default, Known) and default.value is ...
        if default is None or required:
            return Unknown(name, found.call.place, _pass(name))
        return through(default, f"{OPTION}{name}")
    return found


def command_line_defaults(follower: Context, function: Function) -> dict[str, Value]:
    """The defaults that ``@click.option`` gives the parameters of a command."""
    found: dict[str, Value] = {}
    given = given_fields(follower.script_arguments)
    decorators = function.node.decorators if isinstance(function.node, cst.FunctionDef) else ()
    kept, follower.unit = follower.unit, function.unit
    try:
        for decorator in decorators:
            if not isinstance(decorator.decorator, cst.Call):
                continue
            made = follower.value(decorator.decorator)
            if isinstance(made, Thing) and made.made_by in ("click.option", "click.argument"):
                name = option_name(made.call.positional)
                if name:
                    found[name] = given.get(name) or _click_default(made, name)
    finally:
        follower.unit = kept
    return found


def _click_default(option: Thing, name: str) -> Value:
    call = option.call
    default = call.value("default")
    if default is not None:
        return through(default, f"{OPTION}{name}")
    flag = call.value("is_flag")
    if isinstance(flag, Known) and flag.value is True:
        return Known(False)
    required = call.value("required")
    if call.method == "argument" or (isinstance(required, Known) and required.value is True):
        return Unknown(name, call.place, _pass(name))
    return Known(None)


def option_name(names: Sequence[Argument]) -> str:
    """The name that the value of ``--learning-rate`` has in Python."""
    texts = [item.value.value for item in names
             if isinstance(item.value, Known) and isinstance(item.value.value, str)]  # fmt: skip
    plain = [text for text in texts if not text.startswith("-")]
    long = [text for text in texts if text.startswith("--")]
    chosen = (plain or long or texts or [""])[0].split("/")[0]
    return chosen.lstrip("-").replace("-", "_")


def _pass(name: str) -> str:
    return f"pass `--{name}`"
