"""Parsers of the command line in a program: the values that their arguments have without one, or
with the one that the user gave after ``--``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_doctor.static.program.config_files import loaded
from lora_doctor.static.program.functions import option_name
from lora_doctor.static.program.objects import fields_of, library_base
from lora_doctor.static.program.parsed_words import given_fields, given_options
from lora_doctor.static.program.values import (
    OPTION,
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
    through,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

_DATACLASS_PARSERS = ("transformers.HfArgumentParser", "trl.TrlParser",
                      "alignment.H4ArgumentParser")  # fmt: skip
PARSERS = ("argparse.ArgumentParser", "builtins.ArgumentParser", *_DATACLASS_PARSERS)
#: Files that a dataclass parser reads its values from.
_FILES = (".json", ".yaml", ".yml")
_OPTIONS = "--options"
_DECLARED = "--declared"


def parser_call(follower: Context, call: Call) -> Value | None:
    """A parser is made."""
    found = Thing(call, span=call.span)
    found.attributes[_OPTIONS] = Mapping({})
    return found


def parsed(follower: Context, parser: Thing, call: Call) -> Value | None:
    """A method of a parser is called."""
    if parser.made_by in _DATACLASS_PARSERS:
        if call.method.startswith("parse_"):
            return Items(list(_of_classes(follower, parser.call, call)), "tuple")
        return None
    options = parser.attributes.get(_OPTIONS)
    if not isinstance(options, Mapping):
        return None
    if call.method in ("add_argument_group", "add_mutually_exclusive_group"):
        return parser
    if call.method == "add_argument":
        option = _option(call)
        if option is not None:
            options.entries[option[0]] = option[1]
            _declared(parser).append(Thing(call))
        return Known(None)
    if call.method == "set_defaults":
        options.entries.update({name: one.value for name, one in call.keywords.items()})
        return Known(None)
    if call.method in ("parse_args", "parse_known_args"):
        declared = [one.call for one in _declared(parser) if isinstance(one, Thing)]
        given = given_options(follower, declared, _words(follower, call))
        found = Instance(None, {**options.entries, **given})
        return found if call.method == "parse_args" else Items([found, Items([])], "tuple")
    return None


def _declared(parser: Thing) -> list[Value]:
    """The ``add_argument`` calls of a parser."""
    kept = parser.attributes.setdefault(_DECLARED, Items([]))
    assert isinstance(kept, Items)
    return kept.items


def _words(follower: Context, call: Call) -> Sequence[str]:
    """The words that are parsed: those of the command line, unless the program gives others."""
    given = call.value("args", 0)
    if given is None or (isinstance(given, Known) and given.value is None):
        return follower.script_arguments
    known = given.items if isinstance(given, Items) and given.open is None else []
    return [one.value for one in known if isinstance(one, Known) and isinstance(one.value, str)]


def _option(call: Call) -> tuple[str, Value] | None:
    dest = call.value("dest")
    name = dest.value if isinstance(dest, Known) else option_name(call.positional)
    if not name:
        return None
    default = call.value("default")
    if default is not None:
        return name, through(_converted(default, call.value("type")), f"{OPTION}{name}")
    action = _plain(call.value("action"))
    if action in ("store_true", "store_false"):
        return name, Known(action == "store_false")
    positional = not option_name(call.positional) or not _is_option(call)
    if positional or _plain(call.value("required")) is True:
        advice = f"pass `{'' if positional else '--'}{name}`"
        return name, Unknown(f"args.{name}", call.place, advice, call.span)
    return name, Known(None)


def _converted(default: Value, kind: Value | None) -> Value:
    """A default as ``argparse`` hands it out: it converts one that is a text."""
    number = {"float": float, "int": int}.get(
        kind.name.rpartition(".")[2] if isinstance(kind, Reference) else ""
    )
    if number is None or not isinstance(default, Known) or not isinstance(default.value, str):
        return default
    try:
        return replace(default, value=number(default.value))
    except ValueError:  # which stops the program
        return default


def _is_option(call: Call) -> bool:
    return any(str(_plain(item.value)).startswith("-") for item in call.positional)


def _of_classes(follower: Context, call: Call, parsing: Call) -> Iterator[Value]:
    """The dataclasses of a parser, with the values that the command line gives them, or a file that
    it names."""
    first = call.value("dataclass_types", 0)
    from_file = _file_of(follower, parsing)
    for item in first.items if isinstance(first, Items) else [first]:
        given = {**from_file, **given_fields(follower.script_arguments)}
        if isinstance(item, Class) and not library_base(item):
            declared = fields_of(item)
            fields = {name: through(one, f"{OPTION}{name}") for name, one in declared.items()}
            yield Instance(item, {**fields, **{n: v for n, v in given.items() if n in fields}})
        elif isinstance(item, Class):
            yield Instance(item, {**fields_of(item), **given})
        elif isinstance(item, Reference):
            made = Call(item.name, None, (), {}, call.span, call.certain, call.number)
            yield Thing(made, dict(given), span=call.span)
        else:
            yield Unknown("parser", call.place, "", call.span)


def _file_of(follower: Context, parsing: Call) -> dict[str, Value]:
    """The entries of the file that a dataclass parser reads: the one that it is handed, TRL's
    ``--config``, or the first word."""
    first = parsing.value(f"{parsing.method.removeprefix('parse_')}", 0)
    words = [*follower.script_arguments]
    named = words[:1] if words[:1] and words[0].endswith(_FILES) else []
    if "--config" in words[:-1]:
        named = [words[words.index("--config") + 1]]
    if parsing.method in ("parse_json_file", "parse_yaml_file"):
        named = [first.value] if isinstance(first, Known) and isinstance(first.value, str) else []
    found = loaded(follower, named[0], "1.1") if named else None
    return dict(found.entries) if isinstance(found, Mapping) else {}


def _plain(value: Value | None) -> Any:
    return value.value if isinstance(value, Known) else None
