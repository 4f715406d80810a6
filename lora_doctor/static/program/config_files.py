"""Files of settings that a program reads: ``yaml.safe_load(open("config.yaml"))``, ``json.load``,
``tomllib.load``, ``OmegaConf.load``, and the config that ``@hydra.main`` names. Nothing is run, and
nothing that the file refers to elsewhere is resolved: such a value is not known."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libcst as cst

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import JSON_ITEMS, PYTHON_BYTES, check_items, count_items, step
from lora_doctor.static.named_file import named_file
from lora_doctor.static.piece import read_bytes
from lora_doctor.static.program.toml_file import of_toml
from lora_doctor.static.program.units import Span, Unit
from lora_doctor.static.program.values import (
    Call,
    Function,
    Items,
    Known,
    Mapping,
    Thing,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

#: Loaders, each with the release of YAML that it reads: PyYAML takes ``2e-4`` for a text.
_LOADERS = {
    "json.load": "json", "json.loads": "json",
    "yaml.load": "1.1", "yaml.safe_load": "1.1", "yaml.full_load": "1.1",
    "omegaconf.OmegaConf.load": "1.2",
    "tomllib.load": "toml", "tomllib.loads": "toml", "tomli.load": "toml", "tomli.loads": "toml",
    "toml.load": "toml", "toml.loads": "toml",
}  # fmt: skip
#: What makes an object with attributes of a dictionary.
_OBJECTS = frozenset(
    ["argparse.Namespace", "types.SimpleNamespace", "easydict.EasyDict", "addict.Dict", "box.Box",
     "munch.Munch", "munch.munchify", "munch.DefaultMunch.fromDict", "dotmap.DotMap",
     "ml_collections.ConfigDict", "omegaconf.OmegaConf.create", "omegaconf.DictConfig",
     "omegaconf.OmegaConf.to_container", "omegaconf.OmegaConf.to_object"]
)  # fmt: skip
#: Values of a file that are followed.
_MOST_VALUES = 20_000


class _NotReadError(Exception):
    """The file is not there, or holds what is not read."""


def of_config_file(follower: Context, call: Call) -> Value | None:
    """What a call reads from a file beside the program, or makes of it; ``None`` for others."""
    first = call.value("", 0)
    if call.name in _LOADERS:
        path = _path_of(first)
        return loaded(follower, path, _LOADERS[call.name]) if path else None
    if call.name in _OBJECTS:
        made = Mapping({}, call.span, gaps=[call.open] if call.open else [])
        if isinstance(first, Mapping):
            made.take(first)
        spans = {name: (one.span, one.whole) for name, one in call.keywords.items()}
        given = {name: one.value for name, one in call.keywords.items()}
        if call.method not in ("to_container", "to_object"):
            made.take(Mapping(given, spans=spans))
        return made
    if call.name == "omegaconf.OmegaConf.from_cli":
        return Mapping({}) if not follower.script_arguments else None
    if call.name == "omegaconf.OmegaConf.merge":
        return _merged([item.value for item in call.positional])
    return None


def _merged(parts: Sequence[Value]) -> Value | None:
    made = Mapping({})
    for part in parts:
        if isinstance(part, Mapping):
            _merge(made, part)
        else:
            return None
    return made


def _merge(into: Mapping, other: Mapping) -> None:
    for name, value in other.entries.items():
        step()
        here = into.entries.get(name)
        if isinstance(here, Mapping) and isinstance(value, Mapping):
            joined = Mapping({})
            joined.take(here)
            _merge(joined, value)
            into.entries[name] = joined
        else:
            into.take(Mapping({name: value}))
    into.gaps += other.gaps


def _path_of(value: Value | None) -> str:
    """The file that a value stands for: a path, an open file, or what was read of it."""
    for _ in range(5):
        if isinstance(value, Known):
            return value.value if isinstance(value.value, str) else ""
        if not isinstance(value, Thing):
            return ""
        call = value.call
        if call.name in ("builtins.open", "io.open", "open"):
            value = call.value("file", 0)
        elif call.method in ("read", "read_text", "read_bytes", "open"):
            value = call.receiver
        else:
            return ""
    return ""


def hydra_config(follower: Context, function: Function) -> Value | None:
    """The config that ``@hydra.main`` hands to a function; ``None`` for other functions, and where
    it is put together of several files in a way that is not followed."""
    node = function.node
    for decorator in node.decorators if isinstance(node, cst.FunctionDef) else ():
        made = follower.value(decorator.decorator)
        if isinstance(made, Thing) and made.made_by == "hydra.main":
            folder, name = made.call.value("config_path", 0), made.call.value("config_name", 1)
            if isinstance(folder, Known) and isinstance(name, Known) and folder.value:
                place = Path(function.unit.file).parent / str(folder.value)
                return _composed(follower, place, str(name.value))
    return None


def _composed(follower: Context, folder: Path, name: str) -> Value | None:
    """A config of hydra with the groups of its ``defaults``, and the words of the command line."""
    found = _of_hydra(follower, folder, name)
    if not isinstance(found, Mapping):
        return None
    groups = found.entries.pop("defaults", None)
    result = Mapping({})
    items = groups.items if isinstance(groups, Items) else []
    if not any(_is_itself(item) for item in items):
        items = [*items, Known("_self_")]
    for item in items:
        for part in [found] if _is_itself(item) else _of_group(follower, folder, item):
            if part is None:
                return None
            _merge(result, part)
    return result if _overridden(result, follower.script_arguments) else None


def _is_itself(item: Value) -> bool:
    return isinstance(item, Known) and item.value == "_self_"


def _of_group(follower: Context, folder: Path, item: Value) -> Iterator[Mapping | None]:
    """The files that one of the ``defaults`` names; ``None`` for one that is not read."""
    if isinstance(item, Known):
        part = _of_hydra(follower, folder, str(item.value))
        yield part if isinstance(part, Mapping) else None
    for group, option in item.entries.items() if isinstance(item, Mapping) else ():
        if not group.startswith("override ") and isinstance(option, Known):
            part = _of_hydra(follower, folder / group, str(option.value))
            yield Mapping({group: part}) if isinstance(part, Mapping) else None


def _of_hydra(follower: Context, folder: Path, name: str) -> Value | None:
    stem = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    return loaded(follower, str(folder / stem), "1.2")


def _overridden(config: Mapping, words: Sequence[str]) -> bool:
    """Set what ``lora.r=16`` says; whether every word was one of these."""
    for word in words:
        keys, equal, text = word.lstrip("+").partition("=")
        place = config
        *above, last = keys.split(".")
        for key in above:
            inner = place.entries.get(key)
            if not isinstance(inner, Mapping):
                return False
            place = inner
        if not equal or word.startswith(("~", "-")):
            return False
        place.take(Mapping({last: Known(_scalar(text))}))
    return True


def _scalar(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError):
        return text


def loaded(follower: Context, name: str, kind: str) -> Value | None:
    """The content of a file, found from here or from the folder of the program."""
    path = named_file(name, (Path(), follower.folder))
    if path is None:
        return None
    try:
        text = read_bytes(path, PYTHON_BYTES).decode("utf-8-sig")
        check_items(count_items(text) + text.count("\n"), JSON_ITEMS // 10, "it")
        unit = Unit(str(path), text, editable=False)
        return of_toml(unit) if kind == "toml" else _Reader(unit, kind).read()
    except (EvidenceError, UnicodeDecodeError, _NotReadError):
        return None


def _is_float_of_pyyaml(text: str) -> bool:
    """Whether PyYAML reads a number: ruamel.yaml does so in ``2e-4`` even as YAML 1.1."""
    try:
        pyyaml = importlib.import_module("yaml")
    except ImportError:
        return "." in text
    tag: str = pyyaml.SafeLoader("").resolve(pyyaml.ScalarNode, text, (True, False))
    return tag.endswith(":float")


class _Reader:
    """Values of a file with their places."""

    def __init__(self, unit: Unit, kind: str) -> None:
        self.unit, self.kind = unit, kind
        self.left = _MOST_VALUES

    def read(self) -> Value | None:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 1) if self.kind == "1.1" else (1, 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                root = yaml.compose(self.unit.text)
            return self._value(root, yaml.constructor) if root is not None else None
        except (YAMLError, RecursionError, ValueError, TypeError, KeyError, AttributeError):
            raise _NotReadError from None

    def _value(self, node: Any, constructor: Any) -> Value:
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        step()
        self.left -= 1
        if self.left < 0:
            raise _NotReadError
        span = Span(self.unit, node.start_mark.index, node.end_mark.index)
        if isinstance(node, SequenceNode):
            return Items([self._value(item, constructor) for item in node.value], "list", span)
        if isinstance(node, MappingNode):
            return self._mapping(node, constructor, span)
        of_float = self.kind == "1.1" and node.tag.endswith(":float") and node.style is None
        if of_float and not _is_float_of_pyyaml(node.value):
            return Known(node.value, span)
        value = constructor.construct_object(node, deep=True)
        if isinstance(value, str) and ("${" in value or value == "???"):
            return Unknown(value, span.place, "", span)
        if not isinstance(value, (str, int, float, bool)) and value is not None:
            return Unknown(span.text, span.place, "", span)
        return Known(value, span)

    def _mapping(self, node: Any, constructor: Any, span: Span) -> Mapping:
        found = Mapping({}, span)
        for key, value in node.value:
            name = self._value(key, constructor)
            inner = self._value(value, constructor)
            if isinstance(name, Known) and name.value == "<<":
                for part in inner.items if isinstance(inner, Items) else [inner]:
                    if isinstance(part, Mapping):
                        rest = {k: v for k, v in part.entries.items() if k not in found.entries}
                        found.entries.update(rest)
            elif isinstance(name, Known):
                whole = Span(self.unit, key.start_mark.index, value.end_mark.index)
                own = Span(self.unit, value.start_mark.index, value.end_mark.index)
                found.take(Mapping({str(name.value): inner}, spans={str(name.value): (own, whole)}))
        return found
