"""Whether a name can be imported from an installed package, by its sources, without importing it.

transformers makes most of its packages lazy, keeps old module names alive and answers for classes
that have another name now. Where the sources leave room for any of this the answer is "unknown":
"gone" is said only when nothing could provide the name.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lora_doctor.static.installed.environment import package_folder

Presence = Literal["there", "gone", "unknown"]
_DEPTH = 8
_AT_MARGIN = (
    r"^(?:class|def|async def) {name}\b|^{name}\s*(?::[^=\n]*)?=[^=]"
    r"|^from [\w.]+ import (?:\([^)#]*?|[^\n(#]*?)(?<!as )\b{name}\b(?! as )"
)


@functools.cache
def importable(module: str, name: str | None = None) -> Presence:
    """Whether ``from module import name`` works here; without ``name``, ``import module``.

    ``module`` is absolute and dotted; its top package is installed, or the answer is "gone".
    """
    return _importable(module, name, _DEPTH)


def _importable(module: str, name: str | None, depth: int) -> Presence:
    top, *parts = module.split(".")
    folder = package_folder(top)
    if folder is None:
        # A module that is one file, or one that is compiled into the interpreter.
        return "unknown" if _exists(top) else "gone"
    file = _file_of(folder, parts)
    if file is None:
        return _missing_module(folder, parts)
    if name is None or name == "*":
        return "there"
    if name.startswith("__"):
        return "unknown"  # what Python itself puts into a module
    if file.name == "__init__.py" and _file_of(file.parent, [name]) is not None:
        return "there"
    if file.suffix != ".py" or depth == 0:
        return "unknown"
    return _in_file(file, top, module, name, depth)


def _exists(package: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _file_of(folder: Path, parts: list[str]) -> Path | None:
    """The file of the module ``parts`` under ``folder``; compiled ones count, without a source."""
    path = folder.joinpath(*parts)
    for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if file.is_file():
            return file
    if not parts:
        return None
    compiled = sorted(path.parent.glob(f"{path.name}.*")) if path.parent.is_dir() else []
    return next((file for file in compiled if file.suffix in (".so", ".pyd")), None)


def _missing_module(folder: Path, parts: list[str]) -> Presence:
    """A module without a file: gone, unless the package installs a finder that may know it."""
    opening = _text(folder / "__init__.py")
    if "sys.meta_path" not in opening and "sys.modules[" not in _without_lazy(opening):
        return "gone"
    # An alias is written out, or is made of words that a pattern of the package has.
    words = set(re.findall(r"[a-z0-9]+", opening))
    named = re.search(rf"\b{re.escape(parts[-1])}\b", opening) is not None
    suffix = parts[-1].rpartition("_")[2]
    patterned = re.search(rf"_{re.escape(suffix)}\b", opening) is not None and suffix in words
    return "unknown" if named or patterned else "gone"


def _without_lazy(text: str) -> str:
    return re.sub(r"sys\.modules\[__name__\]\s*=\s*\w*LazyModule", "", text)


def _in_file(file: Path, top: str, module: str, name: str, depth: int) -> Presence:
    text = _text(file)
    # Parsing takes 0.2 s for the longest files; what stands at the margin is found without.
    if re.search(_AT_MARGIN.format(name=re.escape(name)), text, re.MULTILINE):
        return "there"
    if "LazyModule(" in text:
        return _in_lazy_package(file, top, text, name)
    if re.search(r"\bglobals\(\)|^\s*def __getattr__|setattr\(sys\.modules", text, re.MULTILINE):
        return "unknown"
    if not re.search(rf"\b{re.escape(name)}\b", text) and "import *" not in text:
        return "gone"
    tree = _parse(file)
    if tree is None:
        return "unknown"
    answers: list[Presence] = []
    for bound in _bound(tree):
        if bound == name:
            return "there"
        if isinstance(bound, ast.ImportFrom):
            answers.append(_starred(bound, module, file, name, depth))
    if "there" in answers:
        return "there"
    return "unknown" if "unknown" in answers else "gone"


def _starred(node: ast.ImportFrom, module: str, file: Path, name: str, depth: int) -> Presence:
    """Whether ``from x import *`` brings ``name``."""
    if node.level:
        package = module.split(".")
        # In `__init__.py` one dot means the package itself.
        up = node.level - (file.name == "__init__.py")
        kept = package[: len(package) - up]
        target = ".".join([*kept, *filter(None, [node.module])])
    else:
        target = node.module or ""
    return _importable(target, name, depth - 1)


def _in_lazy_package(file: Path, top: str, text: str, name: str) -> Presence:
    """A package whose names come from a table, or from the files in it."""
    if re.search(rf"\b{re.escape(name)}\b", text):
        return "there"
    if name.startswith("_") or any(name.endswith(suffix) for suffix in _answered_for(top)):
        return "unknown"
    if "import_structure(" not in text:
        return "gone"
    # The table is made of the files below: of what they export.
    quoted = re.compile(
        rf"""["']{re.escape(name)}["']|^(?:class|def) {re.escape(name)}\b|^{re.escape(name)}\s*="""
        .encode(),
        re.MULTILINE,
    )  # fmt: skip
    plain = name.encode()
    for path in _below(file.parent / "models" if file.parent.name == top else file.parent):
        content = _bytes(path)
        if plain in content and quoted.search(content):
            return "there"
    return "gone"


@functools.cache
def _answered_for(package: str) -> tuple[str, ...]:
    """Endings of names that the package's lazy modules answer for without having them."""
    folder = package_folder(package)
    text = _text(folder / "utils" / "import_utils.py") if folder else ""
    return tuple(dict.fromkeys(re.findall(r"name\.endswith\(['\"](\w+)['\"]\)", text)))


@functools.cache
def _below(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.rglob("*.py")))


def _bound(tree: ast.Module) -> Iterator[str | ast.ImportFrom]:
    """Names that running the module binds, in whichever branch; star imports as they are."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Import):
            yield from (item.asname or item.name.split(".")[0] for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            if any(item.name == "*" for item in node.names):
                yield node
            yield from (item.asname or item.name for item in node.names if item.name != "*")
        else:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.ExceptHandler) and node.name:
                yield node.name
            todo.extend(ast.iter_child_nodes(node))


@functools.cache
def _text(file: Path) -> str:
    return _bytes(file).decode("utf-8", "replace")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # a file that cannot be read provides nothing


@functools.cache
def _parse(file: Path) -> ast.Module | None:
    try:
        return ast.parse(_bytes(file))
    except (SyntaxError, ValueError, RecursionError):
        return None
