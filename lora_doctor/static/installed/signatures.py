"""Which arguments a class of an installed package takes, read from its source and not imported."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lora_doctor.limits import INSTALLED_FILES
from lora_doctor.static.installed.environment import installed_text, installed_tree, package_folder

_DEPTH = 8
#: Where a package keeps classes that a program calls by name; models have their own signatures.
_FOLDERS = {
    "transformers": (
        "*.py",
        "utils/*.py",
        "generation/*.py",
        "data/*.py",
        "integrations/peft.py",
    ),
    "trl": ("trainer/*.py", "*.py", "experimental/*/*.py"),
    "peft": (
        "*.py",
        "tuners/*/config.py",
        "utils/*.py",
        "tuners/tuners_utils.py",
        "tuners/*/model.py",
    ),
    "sentence_transformers": ("*.py", "*/*.py", "sentence_transformer/*.py"),
    "torch": ("nn/modules/module.py", "optim/*.py", "utils/data/*.py", "nn/utils/clip_grad.py"),
}


@dataclass(frozen=True)
class Signature:
    """The arguments of a class's constructor. ``annotations``: as they are written."""

    names: tuple[str, ...]
    annotations: dict[str, str]
    #: Whether it takes any other name as well.
    open: bool
    #: Those that may be given by position, in their order; ``None`` where it takes any number.
    positional: tuple[str, ...] | None = None
    #: Those without a default; those of a dataclass are not told.
    required: tuple[str, ...] = ()


def signature_of(dotted: str) -> Signature | None:
    """The signature of ``package.Class``; ``None`` where the package or the class is not there, or
    a base of it cannot be followed."""
    package, _, rest = dotted.partition(".")
    return _signature(package, rest.rpartition(".")[2], _DEPTH)


def signature_of_function(dotted: str) -> Signature | None:
    """The signature of a function of a package; ``None`` where it is not there."""
    package, _, rest = dotted.partition(".")
    node = function_statement(package, rest.rpartition(".")[2])
    return of_function(node, bound=False) if node is not None else None


def installed_version(package: str) -> str | None:
    """The installed release of a distribution; ``None`` where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def loads_by_flag(flag: str) -> bool | None:
    """Whether the installed ``from_pretrained`` knows a bare ``load_in_4bit=``; ``None`` where
    transformers is missing."""
    folder = package_folder("transformers")
    if folder is None:
        return None
    text = installed_text(folder / "modeling_utils.py")
    return re.search(rf"\b{re.escape(flag)}\b", text) is not None if text else None


@functools.cache
def _signature(package: str, name: str, depth: int) -> Signature | None:
    node = class_statement(package, name)
    if node is None or not depth:
        return None
    own = next(
        (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"),
        None,
    )
    if own is not None:
        return of_function(own)
    bases = [_base(package, base, depth) for base in node.bases if not _is_plain_base(base)]
    if any(base is None for base in bases):
        return None
    names: dict[str, str] = {}
    is_open = False
    required = next((base.required for base in bases if base is not None and base.names), ())
    for base in reversed(bases):
        assert base is not None
        names |= {one: base.annotations.get(one, "") for one in base.names}
        is_open = is_open or base.open
    if _is_dataclass(node):
        names |= dict(_fields(node))
    by_place = tuple(names) if not is_open else None
    return Signature(
        tuple(names), names, is_open, by_place, () if _is_dataclass(node) else required
    )


def _base(package: str, node: ast.expr, depth: int) -> Signature | None:
    name = ast.unparse(node).rpartition(".")[2]
    for place in (package, "transformers", "trl"):
        found = _signature(place, name, depth - 1)
        if found is not None:
            return found
    return None


def _is_plain_base(node: ast.expr) -> bool:
    """A base that adds no argument: of the language, or a mixin."""
    name = ast.unparse(node).rpartition(".")[2].partition("[")[0]
    return name in ("object", "ABC", "Generic", "Protocol", "Enum") or name.endswith("Mixin")


def of_function(node: ast.FunctionDef, *, bound: bool = True) -> Signature:
    """The signature that a statement has. ``bound``: without its first argument."""
    first = 1 if bound else 0
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][first:]
    annotations = {
        one.arg: ast.unparse(one.annotation) if one.annotation is not None else ""
        for one in arguments
    }
    renamed = {name for decorator in node.decorator_list for name in _renamed(decorator)}
    names = (*annotations, *sorted(renamed - annotations.keys()))
    ordered = tuple(one.arg for one in (*node.args.posonlyargs, *node.args.args)[first:])
    by_place = ordered if node.args.vararg is None else None
    return Signature(
        names, annotations, node.args.kwarg is not None, by_place, _required(node.args, first)
    )


def _required(arguments: ast.arguments, first: int) -> tuple[str, ...]:
    by_place = [*arguments.posonlyargs, *arguments.args]
    needed = by_place[first : len(by_place) - len(arguments.defaults)]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    needed += [one for one, default in named if default is None]
    return tuple(one.arg for one in needed)


def _renamed(decorator: ast.expr) -> Iterator[str]:
    """The old name that a decorator such as ``deprecate_kwarg("old", ...)`` still takes."""
    if isinstance(decorator, ast.Call) and "deprecate" in ast.unparse(decorator.func):
        for argument in decorator.args[:1]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            kind = ast.unparse(statement.annotation)
            value = ast.unparse(statement.value) if statement.value is not None else ""
            if "ClassVar" not in kind and "init=False" not in value:
                yield statement.target.id, kind


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def class_statement(package: str, name: str) -> ast.ClassDef | None:
    """The class statement, in the first file of the package that has it."""
    found = _statement(package, name, "class")
    return found if isinstance(found, ast.ClassDef) else None


def function_statement(package: str, name: str) -> ast.FunctionDef | None:
    """The statement of a function, in the first file of the package that has it."""
    found = _statement(package, name, "def")
    return found if isinstance(found, ast.FunctionDef) else None


@functools.cache
def _statement(package: str, name: str, kind: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The statement that defines a name; ``kind``: its first word."""
    opening = re.compile(rf"^{kind} {re.escape(name)}\b", re.MULTILINE)
    for file in _files(package):
        if opening.search(_text(file)) is None:
            continue
        tree = installed_tree(file)
        if tree is None:
            return None
        return next(
            (one for one in tree.body
             if isinstance(one, (ast.ClassDef, ast.FunctionDef)) and one.name == name),
            None,
        )  # fmt: skip
    return None


@functools.lru_cache(maxsize=512)
def _text(file: Path) -> str:
    return installed_text(file)


@functools.cache
def _files(package: str) -> tuple[Path, ...]:
    folder = package_folder(package)
    if folder is None:
        return ()
    patterns = _FOLDERS.get(package, ("*.py",))
    found = (file for pattern in patterns for file in sorted(folder.glob(pattern)))
    # What stands in for classes whose packages are missing has their names and nothing of them.
    real = (file for file in found if not file.name.startswith("dummy_"))
    return tuple(dict.fromkeys(islice(real, INSTALLED_FILES)))
