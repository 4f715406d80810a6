"""Whether a name can be imported from an installed package, by its sources, without importing it.

transformers makes most of its packages lazy, keeps old module names alive and answers for classes
that have another name now. Where the sources leave room for any of this the answer is "unknown":
"gone" is said only when nothing could provide the name.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from lora_doctor.limits import INSTALLED_FILES, step
from lora_doctor.static.installed.environment import installed_text, package_folder

Presence = Literal["there", "gone", "unknown"]
_DEPTH = 8
# In steps: a question looks for some files by name; a search costs one for so many characters.
_ASKING = 100
_CHARACTERS = 100
_AT_MARGIN = (
    r"^(?:class|def|async def) {name}\b|^{name}\s*(?::[^=\n]*)?=[^=]"
    r"|^from [\w.]+ import (?:\([^)#]*?|[^\n(#]*?)(?<!as )\b{name}\b(?! as )"
)


@functools.cache
def importable(module: str, name: str | None = None) -> Presence:
    """Whether ``from module import name`` works here; without ``name``, ``import module``.

    ``module`` is absolute and dotted; its top package is installed, or the answer is "gone".

    Raises:
        LimitError: inside ``limits.bounded``, when too much has been asked.
    """
    step(_ASKING)
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


@functools.cache
def module_file(module: str) -> Path | None:
    """The file of a dotted module of an installed package; None where there is none."""
    top, *parts = module.split(".")
    folder = _folder_once(top)
    return None if folder is None else _file_of(folder, parts)


def module_words(module: str) -> frozenset[str]:
    """Every word in the file of a module; empty where there is none."""
    file = module_file(module)
    return _words(file) if file is not None and file.suffix == ".py" else frozenset()


@functools.cache
def _folder_once(package: str) -> Path | None:
    return package_folder(package)


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
    endings = importlib.machinery.EXTENSION_SUFFIXES
    compiled = (path.with_name(f"{path.name}{ending}") for ending in endings)
    return next((file for file in compiled if file.is_file()), None)


def _missing_module(folder: Path, parts: list[str]) -> Presence:
    """A module without a file: gone, unless the package installs a finder that may know it."""
    return "unknown" if _may_be_made(folder / "__init__.py", parts[-1]) else "gone"


def _is_made(file: Path, name: str) -> bool:
    """Whether ``name`` may be a module that the package of this ``__init__.py`` makes."""
    return file.name == "__init__.py" and _may_be_made(file, name)


def _may_be_made(opening: Path, name: str) -> bool:
    """An alias is written out, or ends as a pattern of the package does."""
    return any(
        name in _words(file) or name.rpartition("_")[2] in _endings(file)
        for file in _makers(opening)
    )


@functools.cache
def _makers(opening: Path) -> tuple[Path, ...]:
    """Files of a package that put modules of its own making where imports look: its `__init__.py`,
    or one that this imports."""
    text = _text(opening)
    own = "sys.meta_path" in text or "sys.modules[" in _without_lazy(text)
    tree = _parse(opening)
    imported: list[Path] = []
    for node in () if tree is None else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if not node.level and parts.pop(0) != opening.parent.name:
                continue
            found = _file_of(opening.parent, parts) if parts else None
            if found is not None and found.suffix == ".py" and "sys.meta_path" in _text(found):
                imported.append(found)
    return (*([opening] if own else []), *imported)


@functools.lru_cache(maxsize=32)
def _words(file: Path) -> frozenset[str]:
    """Every word in a file, so that most questions need no search."""
    return frozenset(re.findall(r"\w+", _text(file)))


@functools.cache
def _endings(opening: Path) -> frozenset[str]:
    """What follows the last underscore of a word, where it is a word as well."""
    words = set(re.findall(r"[a-z0-9]+", _text(opening)))
    endings = {word.rpartition("_")[2] for word in _words(opening) if "_" in word}
    return frozenset(endings & words)


def _without_lazy(text: str) -> str:
    return re.sub(r"sys\.modules\[__name__\]\s*=\s*\w*LazyModule", "", text)


def _in_file(file: Path, top: str, module: str, name: str, depth: int) -> Presence:
    text = _text(file)
    step(len(text) // _CHARACTERS)
    named = name in _words(file)
    # Parsing takes 0.2 s for the longest files; what stands at the margin is found without.
    if named and re.search(_AT_MARGIN.format(name=re.escape(name)), text, re.MULTILINE):
        return "there"
    if "LazyModule(" in text:
        return _in_lazy_package(file, top, text, name)
    if _answers_by_code(file) or _is_made(file, name):
        return "unknown"
    if not named and "import *" not in text:
        return "gone"
    tree = _parse(file)
    if tree is None:
        return "unknown"
    answers: list[Presence] = []
    for bound in _bound(tree):
        step()
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
    if name in _words(file):
        return "there"
    if name.startswith("_") or any(name.endswith(suffix) for suffix in _answered_for(top)):
        return "unknown"
    if any(name in _words(listed) for listed in _listed_modules(file)):
        return "unknown"
    if "import_structure(" not in text:
        return "gone"
    # The table is made of the files below: of what they export.
    below = _exports(file.parent / "models" if file.parent.name == top else file.parent)
    return "there" if below.have(name) else "gone"


@functools.cache
def _listed_modules(file: Path) -> tuple[Path, ...]:
    """Files whose names a table takes over by ``dir(module)``, with what they import themselves."""
    modules = dict.fromkeys(re.findall(r"\bin dir\((\w+)\)", _text(file)))
    places = (file.parent, file.parent / "utils")
    found = (_file_of(place, [module]) for module in modules for place in places)
    return tuple(path for path in found if path is not None)


class _Exports:
    """Names that the files of a package export: each file is read once, when it is needed."""

    _NAME = re.compile(
        rb"""["']([A-Za-z_]\w*)["']|^(?:class|def) (\w+)|^([A-Za-z_]\w*)\s*=""", re.MULTILINE
    )

    def __init__(self, folder: Path) -> None:
        self._names: set[bytes] = set()
        self._unread = islice(sorted(folder.rglob("*.py")), INSTALLED_FILES)

    def have(self, name: str) -> bool:
        """Whether one of the files quotes or defines the name."""
        plain = name.encode()
        while plain not in self._names:
            file = next(self._unread, None)
            if file is None:
                return False
            content = installed_text(file).encode()
            for quoted, defined, assigned in self._NAME.findall(content):
                self._names.add(quoted or defined or assigned)
        return True


@functools.cache
def _exports(folder: Path) -> _Exports:
    return _Exports(folder)


@functools.lru_cache(maxsize=256)
def _answers_by_code(file: Path) -> bool:
    """Whether the module gives names that its source does not show."""
    code = r"\bglobals\(\)|^[ \t]*def __getattr__|setattr\(sys\.modules"
    return re.search(code, _text(file), re.MULTILINE) is not None


@functools.cache
def _answered_for(package: str) -> tuple[str, ...]:
    """Endings of names that the package's lazy modules answer for without having them."""
    folder = package_folder(package)
    text = _text(folder / "utils" / "import_utils.py") if folder else ""
    return tuple(dict.fromkeys(re.findall(r"name\.endswith\(['\"](\w+)['\"]\)", text)))


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


@functools.lru_cache(maxsize=128)
def _text(file: Path) -> str:
    return installed_text(file)  # a file that cannot be read provides nothing


@functools.lru_cache(maxsize=32)
def _parse(file: Path) -> ast.Module | None:
    try:
        return ast.parse(_text(file))
    except (SyntaxError, ValueError, RecursionError):
        return None
