"""The arguments that a training framework has, with their defaults: read from its classes.

The source of the installed framework is read with ``ast`` and not imported: a framework takes ten
seconds and a GPU to import, and its dataclasses say the same as text. Where it is not installed,
the answer comes from a table of the same form, which ``tools/framework_tables.py`` wrote with this
reader from the release that the table names.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lora_doctor.limits import INSTALLED_FILE_BYTES
from lora_doctor.static.installed.field_choices import choices_of_fields, kinds_of_fields
from lora_doctor.static.installed.framework_checks import Check, Reader
from lora_doctor.static.installed.handled_values import handled_values
from lora_doctor.static.piece import parse_json

#: A class nests no deeper in others of its framework.
_MOST_BASES = 200
_TABLES = Path(__file__).parent / "framework_tables"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sources:
    """Where a framework keeps its arguments."""

    #: Name on PyPI, such as ``ms-swift``.
    distribution: str
    #: ``package.module:Class``; the fields of an earlier class win over those of a later one.
    classes: tuple[str, ...]
    #: What names a key in the code where no class has it (``cfg.key`` in axolotl): such a key is
    #: taken for known. Searched in every file of the package.
    mentions: str = ""
    #: Files of the package, as a pattern, in which every class holds arguments of the plugin in
    #: that folder.
    plugins: str = ""
    #: Argument to the file of the package that registers the names which it can have, and a pattern
    #: whose group is such a name.
    registered: Mapping[str, tuple[str, str]] = field(default_factory=dict, hash=False)
    #: Where it checks its arguments against each other: ``package.module:Class`` or ``:function``.
    checks: tuple[str, ...] = ()
    #: Packages with the trainers that it hands its arguments to, and their classes of arguments.
    trainers: tuple[str, ...] = ()
    handed_to: tuple[str, ...] = ()
    #: Arguments with the name under which these classes have them, where that is another.
    handed_as: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Fields:
    """The arguments of one release."""

    distribution: str
    version: str
    #: Whether this release is the installed one; otherwise the table was read.
    installed: bool
    #: Name to default, for every argument whose default is a literal.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: Every name, those with a computed default and those that are only mentioned included.
    names: frozenset[str] = frozenset()
    #: Folder of a plugin to the names of its arguments, which count where it is switched on.
    plugins: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: Name to the values that its annotation allows; ``^...`` is a pattern.
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Name to values that are registered; releases and plugins add to them.
    registered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: What it refuses of several arguments together.
    checks: tuple[Check, ...] = ()
    #: Name to ``int``, ``float`` or ``bool``, of an argument that holds nothing else.
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """``llamafactory 0.9.5, installed``."""
        how = "installed" if self.installed else "not installed here, read from its release"
        return f"{self.distribution} {self.version}, {how}"


@functools.cache
def fields_of(sources: Sources) -> Fields | None:
    """The arguments of the framework; ``None`` where neither it nor a table of it is here."""
    return installed_fields(sources) or _of_table(sources.distribution)


def installed_fields(sources: Sources) -> Fields | None:
    """The arguments that the installed framework has; ``None`` where it is not installed or its
    classes are not where they were."""
    try:
        version = importlib.metadata.version(sources.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    defaults: dict[str, Any] = {}
    names: set[str] = set()
    choices: dict[str, tuple[str, ...]] = {}
    kinds: dict[str, str] = {}
    for place in sources.classes:
        module, _, name = place.partition(":")
        found = _Classes().fields(module, name)
        if found is None and place == sources.classes[0]:
            return None
        allowed = _Classes().choices(module, name) or {}
        kinds = {**(_Classes().kinds(module, name) or {}), **kinds}
        for key, default in (found or {}).items():
            if key not in names and default is not _COMPUTED:
                defaults[key] = default
            choices[key] = _either(choices.get(key) if key in names else None, allowed.get(key, ()))
            names.add(key)
    if sources.mentions:
        names |= _mentioned(sources.classes[0].partition(".")[0], sources.mentions)
    package = sources.classes[0].partition(".")[0]
    plugins = _of_plugins(package, sources.plugins) if sources.plugins else {}
    return Fields(
        sources.distribution, version, True, defaults, frozenset(names), plugins,
        {key: values for key, values in choices.items() if values},
        {key: _registered(package, *place) for key, place in sources.registered.items()},
        _checks(sources.checks, frozenset(names)), kinds,
    )  # fmt: skip


def known_to_trainers(sources: Sources, name: str) -> tuple[str, ...]:
    """The values of an argument that the installed trainers know, which are handed it as a text;
    empty where they take any."""
    name = sources.handed_as.get(name, name)
    found = list(handled_values(sources.trainers, name))
    for place in sources.handed_to:
        module, _, of = place.partition(":")
        found += (_Classes().choices(module, of) or {}).get(name, ())
    return tuple(dict.fromkeys(found))


def _either(earlier: tuple[str, ...] | None, later: tuple[str, ...]) -> tuple[str, ...]:
    """The values that one of two classes allows; empty where one of them allows any."""
    if earlier is None:
        return later
    return tuple(dict.fromkeys((*earlier, *later))) if earlier and later else ()


def _registered(package: str, file: str, pattern: str) -> tuple[str, ...]:
    """The names that a file of the package registers."""
    path = _path(package)
    source = path.parent / file if path is not None else None
    if source is None or not source.is_file():
        return ()
    return tuple(sorted(set(re.findall(pattern, source.read_text("utf-8", "replace")))))


def table_path(distribution: str) -> Path:
    """The table of a framework that is not installed."""
    return _TABLES / f"{distribution}.json"


def _of_table(distribution: str) -> Fields | None:
    path = table_path(distribution)
    if not path.is_file():
        return None
    data = parse_json(path.read_bytes(), path.name)
    defaults = dict(data["defaults"])
    names = frozenset({*defaults, *data["others"]})
    plugins = {folder: frozenset(own) for folder, own in data.get("plugins", {}).items()}
    lists = {part: {name: tuple(values) for name, values in data.get(part, {}).items()}
             for part in ("choices", "registered")}  # fmt: skip
    checks = tuple(map(Check.from_json, data.get("checks", ())))
    return Fields(
        distribution, data["version"], False, defaults, names, plugins, lists["choices"],
        lists["registered"], checks,
    )  # fmt: skip


def table_text(fields: Fields) -> str:
    """The table of these arguments."""
    data: dict[str, Any] = {
        "version": fields.version,
        "defaults": {key: fields.defaults[key] for key in sorted(fields.defaults)},
        "others": sorted(fields.names - fields.defaults.keys()),
    }
    if fields.plugins:
        data["plugins"] = {folder: sorted(names) for folder, names in fields.plugins.items()}
    for part, lists in (("choices", fields.choices), ("registered", fields.registered)):
        if lists:
            data[part] = {name: list(lists[name]) for name in sorted(lists)}
    if fields.checks:
        data["checks"] = [check.to_json() for check in fields.checks]
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _checks(places: tuple[str, ...], names: frozenset[str]) -> tuple[Check, ...]:
    """What these functions refuse, and the checks of these classes and of what they are made of."""
    reader = Reader(names)
    seen: set[tuple[str, str]] = set()
    waiting = [(module, name) for module, _, name in (place.partition(":") for place in places)]
    while waiting and len(seen) < _MOST_BASES:
        place = waiting.pop(0)
        if place in seen:
            continue
        seen.add(place)
        tree = _tree(place[0])
        for node in tree.body if tree else ():
            if isinstance(node, ast.FunctionDef) and node.name == place[1]:
                reader.read(node, _file(place[0]))
        found = _class_in(*place)
        if found is None:
            continue
        home, node = found
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and _checks_arguments(part):
                reader.read(part, _file(home))
        waiting += [one for base in node.bases for one in _named_classes(home, base)]
    return reader.checks


def _checks_arguments(method: ast.FunctionDef) -> bool:
    by_pydantic = any("model_validator" in ast.unparse(one) for one in method.decorator_list)
    return by_pydantic or method.name == "__post_init__"


def _file(module: str) -> str:
    """The module as a file of its package."""
    return "/".join(module.split(".")[1:]) + ".py"


class _Computed:
    """The default of an argument that is no literal."""


_COMPUTED = _Computed()


class _Classes:
    """The classes of installed packages, read one file at a time."""

    def __init__(self) -> None:
        self._left = _MOST_BASES

    def fields(self, module: str, name: str) -> dict[str, Any] | None:
        """Field to default, its own before those of its bases; ``None`` without such a class."""
        found = _class_in(module, name)
        self._left -= 1
        if found is None or self._left < 0:
            return None
        home, node = found
        fields = dict(_own_fields(node))
        for base in node.bases:
            for part, base_name in _named_classes(home, base):
                for key, default in (self.fields(part, base_name) or {}).items():
                    fields.setdefault(key, default)
        return fields

    def choices(self, module: str, name: str) -> dict[str, tuple[str, ...]] | None:
        """Field to the values that it can have (empty: any), as :meth:`fields`."""
        return self._all(module, name, _own_choices)

    def kinds(self, module: str, name: str) -> dict[str, str] | None:
        """Field to what it holds where that is a number or a switch, as :meth:`fields`."""
        return self._all(module, name, lambda home, node: kinds_of_fields(node))

    def _all(
        self, module: str, name: str, own: Callable[[str, ast.ClassDef], Iterable[tuple[str, _T]]]
    ) -> dict[str, _T] | None:
        """What a class and its bases say of their fields, its own before those of its bases."""
        found = _class_in(module, name)
        self._left -= 1
        if found is None or self._left < 0:
            return None
        home, node = found
        said = dict(own(home, node))
        for base in node.bases:
            for part, base_name in _named_classes(home, base):
                for key, value in (self._all(part, base_name, own) or {}).items():
                    said.setdefault(key, value)
        return said


def _own_fields(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for part in node.body:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            continue
        if part.target.id.startswith("_") or "ClassVar" in ast.unparse(part.annotation):
            continue
        default = _default(part.value)
        yield part.target.id, default
        yield from ((alias, _COMPUTED) for alias in _aliases(part.value))


def _own_choices(module: str, node: ast.ClassDef) -> Iterator[tuple[str, tuple[str, ...]]]:
    def find(name: ast.expr) -> ast.ClassDef | None:
        places = [_class_in(*place) for place in _named_classes(module, name)]
        return next((found[1] for found in places if found), None)

    yield from choices_of_fields(node, find)


def _default(value: ast.expr | None) -> Any:
    if value is None:
        return _COMPUTED
    if isinstance(value, ast.Call):
        given = {word.arg: word.value for word in value.keywords}
        if "default" in given:
            return _default(given["default"])
        factory = given.get("default_factory")
        if isinstance(factory, ast.Lambda):
            return _default(factory.body)
        if isinstance(factory, ast.Name) and factory.id in ("list", "dict"):
            return [] if factory.id == "list" else {}
        called = ast.unparse(value.func).rpartition(".")[2]
        return _default(value.args[0]) if called == "Field" and value.args else _COMPUTED
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult):  # 768 * 768
        sides = _default(value.left), _default(value.right)
        return sides[0] * sides[1] if all(type(side) is int for side in sides) else _COMPUTED
    try:
        literal = ast.literal_eval(value)
        return json.loads(json.dumps(literal))
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return _COMPUTED


def _aliases(value: ast.expr | None) -> Iterator[str]:
    if isinstance(value, ast.Call):
        for word in value.keywords:
            if word.arg in ("alias", "validation_alias"):
                for part in ast.walk(word.value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value


def _named_classes(module: str, base: ast.expr) -> tuple[tuple[str, str], ...]:
    """The modules and names that an expression in this module may stand for."""
    return _named(module, ast.unparse(base).rpartition(".")[2])


@functools.lru_cache(maxsize=8192)
def _named(module: str, name: str) -> tuple[tuple[str, str], ...]:
    return tuple(_find_named(module, name))


def _find_named(module: str, name: str) -> Iterator[tuple[str, str]]:
    tree = _tree(module)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield module, name
            return
        renamed = isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        )
        if renamed and isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            yield from _named_classes(module, node.value)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    yield _absolute(module, node), alias.name


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + (1 if _is_package(module) else 0)]
    return ".".join([*kept, *([node.module] if node.module else [])])


@functools.lru_cache(maxsize=8192)
def _class_in(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """The class and the module that has it: this one, or the one that it hands on."""
    tree = _tree(module)
    if tree is None:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _class_in(_absolute(module, node), alias.name)
    return _class_below(module, name)


def _class_below(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """A class that a package hands on lazily: it is in one of its own modules."""
    if not _is_package(module):
        return None
    path = _path(module)
    assert path is not None
    for file in sorted(path.parent.rglob("*.py")):
        text = file.read_text("utf-8", "replace")
        if re.search(rf"^class {re.escape(name)}\b", text, re.MULTILINE):
            inner = file.relative_to(path.parent).with_suffix("")
            part = ".".join([module, *(piece for piece in inner.parts if piece != "__init__")])
            if part != module:
                return _class_in(part, name)
    return None


@functools.cache
def _tree(module: str) -> ast.Module | None:
    path = _path(module)
    if path is None or path.stat().st_size > INSTALLED_FILE_BYTES:
        return None
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_package(module: str) -> bool:
    path = _path(module)
    return path is not None and path.name == "__init__.py"


@functools.cache
def _path(module: str) -> Path | None:
    """The file of a module; only its top package is looked for, nothing is imported."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        place = Path(folder, *rest)
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _of_plugins(package: str, pattern: str) -> dict[str, frozenset[str]]:
    """The names of the arguments that come with each plugin."""
    path = _path(package)
    found: dict[str, frozenset[str]] = {}
    for file in sorted(path.parent.glob(pattern)) if path else ():
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        names = {name for node in classes for name, _ in _own_fields(node)}
        found[file.parent.name] = frozenset(names)
    return found


def _mentioned(package: str, pattern: str) -> set[str]:
    path = _path(package)
    names: set[str] = set()
    for file in path.parent.rglob("*.py") if path else ():
        for match in re.finditer(pattern, file.read_text("utf-8", "replace")):
            names.update(group for group in match.groups() if group)
    return names
