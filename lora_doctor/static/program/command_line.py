"""Parsers of the command line in a program: the values that their arguments have without one, or
with the one that the user gave after ``--``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_doctor.static.program.functions import option_name
from lora_doctor.static.program.objects import fields_of, library_base
from lora_doctor.static.program.values import (
    Call,
    Class,
    Instance,
    Items,
    Known,
    Mapping,
    Reference,
    Thing,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

_DATACLASS_PARSERS = ("transformers.HfArgumentParser", "trl.TrlParser", "trl.H4ArgumentParser")
PARSERS = ("argparse.ArgumentParser", "builtins.ArgumentParser", *_DATACLASS_PARSERS)
_OPTIONS = "--options"


def parser_call(follower: Context, call: Call) -> Value | None:
    """A parser is made."""
    found = Thing(call, span=call.span)
    found.attributes[_OPTIONS] = Mapping({})
    return found


def parsed(follower: Context, parser: Thing, call: Call) -> Value | None:
    """A method of a parser is called."""
    if parser.made_by in _DATACLASS_PARSERS:
        if call.method.startswith("parse_"):
            return Items(list(_of_classes(follower, parser.call)), "tuple")
        return None
    options = parser.attributes.get(_OPTIONS)
    if not isinstance(options, Mapping):
        return None
    if call.method in ("add_argument_group", "add_mutually_exclusive_group"):
        return parser
    if call.method == "add_argument":
        option = _option(follower, call)
        if option is not None:
            options.entries[option[0]] = option[1]
        return Known(None)
    if call.method == "set_defaults":
        options.entries.update({name: one.value for name, one in call.keywords.items()})
        return Known(None)
    if call.method == "parse_args":
        return Instance(None, dict(options.entries))
    if call.method == "parse_known_args":
        return Items([Instance(None, dict(options.entries)), Items([])], "tuple")
    return None


def _option(follower: Context, call: Call) -> tuple[str, Value] | None:
    dest = call.value("dest")
    name = dest.value if isinstance(dest, Known) else option_name(call.positional)
    if not name:
        return None
    given = _given(follower.script_arguments, call, name)
    if given is not None:
        return name, given
    default = call.value("default")
    if default is not None:
        return name, default
    action = _plain(call.value("action"))
    if action in ("store_true", "store_false"):
        return name, Known(action == "store_false")
    positional = not option_name(call.positional) or not _is_option(call)
    if positional or _plain(call.value("required")) is True:
        advice = f"pass `{'' if positional else '--'}{name}`"
        return name, Unknown(f"args.{name}", call.place, advice, call.span)
    return name, Known(None)


def _is_option(call: Call) -> bool:
    return any(str(_plain(item.value)).startswith("-") for item in call.positional)


def _given(words: Sequence[str], call: Call, name: str) -> Value | None:
    """The value that the user's command line has for an argument."""
    spellings = [str(_plain(item.value)) for item in call.positional]
    action = _plain(call.value("action"))
    found = None
    for number, word in enumerate(words):
        option, equal, value = word.partition("=")
        if option not in spellings:
            continue
        if action in ("store_true", "store_false"):
            found = Known(action == "store_true")
        elif equal:
            found = _converted(value, call)
        elif call.value("nargs") is not None:
            return Items([_converted(one, call) for one in _until_option(words[number + 1 :])])
        elif number + 1 < len(words):
            found = _converted(words[number + 1], call)
    return found


def _until_option(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("--"):
            return
        yield word


def _converted(text: str, call: Call) -> Known:
    kind = call.value("type")
    name = kind.name.rpartition(".")[2] if isinstance(kind, Reference) else "str"
    return Known(_as(text, name))


def _as(text: str, kind: str) -> Any:
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        return text
    return text


def _of_classes(follower: Context, call: Call) -> Iterator[Value]:
    """The dataclasses of a parser, with the values that the command line gives them."""
    first = call.value("dataclass_types", 0)
    for item in first.items if isinstance(first, Items) else [first]:
        given = _given_fields(follower.script_arguments)
        if isinstance(item, Class) and not library_base(item):
            fields = fields_of(item)
            yield Instance(item, {**fields, **{n: v for n, v in given.items() if n in fields}})
        elif isinstance(item, Class):
            yield Instance(item, {**fields_of(item), **given})
        elif isinstance(item, Reference):
            made = Call(item.name, None, (), {}, call.span, call.certain, call.number)
            yield Thing(made, dict(given), span=call.span)
        else:
            yield Unknown("parser", call.place, "", call.span)


def _given_fields(words: Sequence[str]) -> dict[str, Value]:
    """``--name value`` and ``--name`` as a dataclass parser reads them."""
    found: dict[str, Value] = {}
    for number, word in enumerate(words):
        if not word.startswith("--"):
            continue
        option, equal, value = word.partition("=")
        rest = [] if equal else list(_until_option(words[number + 1 :]))
        name = option.lstrip("-").replace("-", "_")
        texts = [value] if equal else rest
        values: list[Value] = [Known(_literal(text)) for text in texts]
        found[name] = values[0] if len(values) == 1 else Items(values) if values else Known(True)
    return found


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain(value: Value | None) -> Any:
    return value.value if isinstance(value, Known) else None
