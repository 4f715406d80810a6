"""The words of a command line as ``argparse`` itself takes them apart, for the arguments that a
program declares."""

from __future__ import annotations

import argparse
import ast
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from lora_doctor.static.program.started import PlacedWord, value_of
from lora_doctor.static.program.units import Span
from lora_doctor.static.program.values import (
    Argument,
    Call,
    Function,
    Items,
    Known,
    Reference,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

_FLAGS = ("store_true", "store_false", "count", "append", "extend", "store")
_TRUE, _FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")


class _RefusedError(Exception):
    """What ``argparse`` says to a command line that it does not take."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _RefusedError(message)


def given_options(
    follower: Context, declared: Sequence[Call], words: Sequence[str]
) -> dict[str, Value]:
    """The arguments that the words give, by their names in Python; none where they are refused."""
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    kinds: dict[str, Value | None] = {}
    for call in declared:
        try:
            action = parser.add_argument(*_names(call), **_keywords(call))
        except (ValueError, TypeError, argparse.ArgumentError):
            continue  # declared in a way that is not known here
        kinds[action.dest] = call.value("type")
    try:
        found, _ = parser.parse_known_args(list(_split(words)))
    except (_RefusedError, argparse.ArgumentError, ValueError, TypeError):
        return {}
    return {name: _value(follower, one, kinds.get(name)) for name, one in vars(found).items()}


def given_fields(words: Sequence[str]) -> dict[str, Value]:
    """``--name value`` and ``--name`` as a dataclass parser, Fire or Typer reads them."""
    found: dict[str, Value] = {}
    for number, word in enumerate(words):
        if not word.startswith("--"):
            continue
        option, equal, value = word.partition("=")
        if isinstance(word, PlacedWord):
            value = word.part(value)
        rest = [] if equal else list(_until_option(words[number + 1 :]))
        name = option.lstrip("-").replace("-", "_")
        values = [value_of(text, literal(str(text))) for text in ([value] if equal else rest)]
        found[name] = values[0] if len(values) == 1 else listed(values) if values else Known(True)
    return found


def listed(values: Sequence[Value]) -> Items:
    """Words as a list; with the place of all where nothing else stands between them."""
    spans = [one.span for one in values if one.span is not None]
    if not spans or len(spans) < len(values):
        return Items([*values])
    for one, after in itertools.pairwise(spans):
        between = one.unit.text[one.end : after.start]
        if one.unit is not after.unit or not re.fullmatch(r"(?:[ \t]|\\\r?\n)+", between):
            return Items([*values])
    return Items([*values], span=Span(spans[0].unit, spans[0].start, spans[-1].end))


def as_keywords(values: Mapping[str, Value], span: Span) -> dict[str, Argument]:
    """Values as the arguments of a call that stands there."""
    return {name: Argument(name, value, span, span) for name, value in values.items()}


def _until_option(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("--"):
            return
        yield word


def literal(text: str) -> Any:
    """A word as a truth value or a number, where it is one."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _split(words: Sequence[str]) -> Iterator[str]:
    """The words, those of ``--name=value`` apart, so that the value stays where it is written."""
    for word in words:
        name, equal, value = word.partition("=")
        if isinstance(word, PlacedWord) and name.startswith("--") and equal and value[:1] != "-":
            yield name
            yield word.part(value)
        else:
            yield word


def _names(call: Call) -> list[str]:
    return [one.value.value for one in call.positional
            if isinstance(one.value, Known) and isinstance(one.value.value, str)]  # fmt: skip


def _keywords(call: Call) -> dict[str, Any]:
    """How the argument is declared, without what it must be and is when it is not given."""
    option = any(name.startswith("-") for name in _names(call))
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    dest, action, nargs = (_plain(call.value(name)) for name in ("dest", "action", "nargs"))
    if isinstance(dest, str) and option:
        given["dest"] = dest
    if isinstance(action, str) and action.endswith("BooleanOptionalAction"):
        given["action"] = argparse.BooleanOptionalAction
    elif action in _FLAGS:
        given["action"] = action
    elif action in ("store_const", "append_const"):
        given.update(action=action, const=_plain(call.value("const")))
    if nargs is not None:
        given["nargs"] = {"+": "*"}.get(nargs, nargs) if not option else nargs
        given.update({"const": _plain(call.value("const"))} if nargs == "?" else {})
    elif not option:
        given["nargs"] = "?"
    return given


def _plain(value: Value | None) -> Any:
    if isinstance(value, Reference):
        return {"argparse.REMAINDER": "...", "argparse.OPTIONAL": "?"}.get(value.name, value.name)
    return value.value if isinstance(value, Known) else None


def _value(follower: Context, found: Any, kind: Value | None) -> Value:
    if isinstance(found, list):
        return listed([_value(follower, one, kind) for one in found])
    if not isinstance(found, str):
        return Known(found)
    word = value_of(found, found)
    if isinstance(word, Unknown) or kind is None:
        return word
    if isinstance(kind, Function):
        return _by_function(follower, kind, word)
    name = kind.name.rpartition(".")[2] if isinstance(kind, Reference) else ""
    if name in ("str", "Path"):
        return word
    try:
        return value_of(found, _converted(str(found), name))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return Known(found, word.span)


def _converted(text: str, kind: str) -> Any:
    """The text as the function of that name converts it; as it is where that is not known."""
    if kind in ("int", "float", "bool"):
        return {"int": int, "float": float, "bool": bool}[kind](text)
    if kind in ("literal_eval", "eval"):
        return ast.literal_eval(text)
    if kind in ("strtobool", "str2bool", "string_to_bool") and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    return text


def _by_function(follower: Context, function: Function, word: Known) -> Value:
    """What a function of the program makes of the word."""
    span = word.span or follower.unit.span(function.node)
    found = follower.run(function, [Argument("", word, span, span)], {})
    if isinstance(found, Known) and found.span is None:
        return Known(found.value, word.span)
    return found
