"""What importing an installed package imports in turn, and which names of it are not installed.

Only imports at the margin of a file are followed: they run whenever the file does. One under
``try``, behind a version test, in a function or for type checkers may be provided for. Nothing is
imported: files are searched by a pattern, and a file is parsed only where a name is missing.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lora_doctor.static.installed.environment import installed_text, package_folder
from lora_doctor.static.installed.installed_names import importable, module_file

#: Packages of the training stack that are plain Python: their files are read in turn. What others
#: (torch, numpy) import is theirs; of compiled ones a source says nothing.
FOLLOWED = (
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "trl",
    "datasets",
    "huggingface_hub",
)
#: Statements that a training script begins with, by the package that they are about.
ROOTS: dict[str, tuple[str, ...]] = {
    "transformers": ("PreTrainedModel", "Trainer"),
    "accelerate": (),
    "peft": (),
    "bitsandbytes": (),
    "trl": ("SFTTrainer", "DPOTrainer"),
}
_MARGIN_IMPORT = re.compile(
    r"^from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n(]+)|^import[ \t]+([^\n(]+)",
    re.MULTILINE,
)
_COMMENT = re.compile(r"#[^\n]*")
_CONTINUED = re.compile(r"\\\n")
#: An entry of the table of a lazy package: a module, and the names that it defines.
_LAZY_ENTRY = re.compile(
    r"""["']([\w.]+)["'](\])?\s*(?::|=|\.extend\()\s*\[([^\[\]]*)\]""", re.DOTALL
)
#: What entries that are added to the table afterwards depend on; without it their names are dummies
#: that import nothing.
_LAZY_GUARD = re.compile(r"^[ \t]+if not ([^:\n]*\bis_\w+_available\(\)[^:\n]*):", re.MULTILINE)


@dataclass(frozen=True)
class MissingImport:
    """A name, or a whole module (``name`` None), that an import takes and nothing provides.

    ``root`` is the statement that fails, such as ``import peft``; ``file`` (from the package on)
    and ``line`` are where the name is asked for, ``chain`` the modules on the way there.
    """

    root: str
    module: str
    name: str | None
    file: str
    line: int
    chain: tuple[str, ...]

    @property
    def importer(self) -> str:
        """The package whose file asks."""
        return self.chain[-1].split(".")[0]

    @property
    def provider(self) -> str:
        """The package that does not have it, or that is not installed at all."""
        return self.module.split(".")[0]

    @property
    def message(self) -> str:
        """What Python will say."""
        if self.name is None:
            return f"No module named {self.module!r}"
        return f"cannot import name {self.name!r} from {self.module!r}"


@dataclass(frozen=True)
class _Import:
    """One name at the margin of a file: ``from module import name``, or ``import module``."""

    module: str
    name: str | None
    line: int


@functools.cache
def missing_imports() -> tuple[MissingImport, ...]:
    """The first name, for each of ``ROOTS`` that is installed, at which importing it ends."""
    found: dict[tuple[str, str | None], MissingImport] = {}
    for package, names in ROOTS.items():
        if package_folder(package) is None:
            continue
        for name in names or (None,):
            missing = _first_missing(package, name)
            if missing is not None:
                found.setdefault((missing.module, missing.name), missing)
    return tuple(found.values())


def _first_missing(package: str, name: str | None) -> MissingImport | None:
    if name is not None and importable(package, name) == "gone":
        return None  # this release has no such name; a script of its time asks for none
    statement = f"from {package} import {name}" if name else f"import {package}"
    walk = _Walk(statement)
    missing = walk.enter(package, None)
    if missing is None and name is not None:
        missing = walk.enter_name(package, name, None)
    return missing


@dataclass
class _Walk:
    """Modules that one statement imports, in the order in which Python runs them."""

    statement: str
    #: Each module to the one that imports it.
    imported_by: dict[str, str | None] = field(default_factory=dict)

    def enter(self, module: str, by: str | None) -> MissingImport | None:
        """A module and the packages that it is in, each run once."""
        parts = module.split(".")
        if parts[0] not in FOLLOWED:
            return None
        for count in range(1, len(parts) + 1):
            part = ".".join(parts[:count])
            if part not in self.imported_by:
                self.imported_by[part] = by
                missing = self.run(part)
                if missing is not None:
                    return missing
        return None

    def enter_name(self, module: str, name: str, by: str | None) -> MissingImport | None:
        """The module that a name is, or that a lazy package takes it from."""
        file = module_file(module) if module.split(".")[0] in FOLLOWED else None
        if file is None or file.name != "__init__.py":
            return None  # all that it has came with it
        if module_file(f"{module}.{name}") is not None:
            return self.enter(f"{module}.{name}", by)
        defining = _lazy_table(module).get(name)
        if defining is None:
            return None
        return self.enter(defining, by) or self.enter_name(defining, name, by)

    def run(self, module: str) -> MissingImport | None:
        """The first name that is missing in a module or in what it imports."""
        for item in _margin_imports(module):
            missing = self.missing(module, item) or self.enter(item.module, module)
            if missing is None and item.name is not None:
                missing = self.enter_name(item.module, item.name, module)
            if missing is not None:
                return missing
        return None

    def missing(self, module: str, item: _Import) -> MissingImport | None:
        """What the import fails for, where every import on the way to it surely runs."""
        lacks = _not_provided(module, item)
        if lacks is None or not self.surely_runs(module, item):
            return None
        file, folder = module_file(module), package_folder(module.split(".")[0])
        if file is None or folder is None:
            return None
        shown = file.relative_to(folder.parent).as_posix()
        return MissingImport(self.statement, *lacks, shown, item.line, tuple(self.chain(module)))

    def chain(self, module: str) -> list[str]:
        """From the first module to this one."""
        steps: list[str] = []
        at: str | None = module
        while at is not None:
            steps.append(at)
            at = self.imported_by[at]
        return steps[::-1]

    def surely_runs(self, module: str, item: _Import) -> bool:
        """Whether what the pattern found are statements, not lines of a text."""
        if not _is_statement(module, item.line):
            return False
        steps = self.chain(module)
        return all(
            any(_is_statement(importer, each.line) for each in _margin_imports(importer)
                if _reaches(each, imported))
            for importer, imported in pairwise(steps)
        )  # fmt: skip


def _reaches(item: _Import, module: str) -> bool:
    """Whether an import runs a module: names it, something inside it, or a name it defines."""
    whole = f"{item.module}.{item.name}" if item.name else item.module
    if f"{whole}.".startswith(f"{module}."):
        return True
    return item.name is not None and _defines(item.module, item.name, module)


def _defines(package: str, name: str, module: str) -> bool:
    defining = _lazy_table(package).get(name)
    if defining is None:
        return False
    return f"{defining}.".startswith(f"{module}.") or _defines(defining, name, module)


def _not_provided(module: str, item: _Import) -> tuple[str, str | None] | None:
    """The module, and the name of it, that an import does not find; None where it finds all."""
    provider = item.module.split(".")[0]
    if provider == module.split(".")[0] or provider in sys.stdlib_module_names:
        return None
    if importable(provider) == "gone":
        return provider, None
    if provider not in FOLLOWED:
        return None  # its modules may be compiled, or made while it is imported
    if importable(item.module) == "gone":
        return item.module, None
    if item.name is None or item.name == "*" or importable(item.module, item.name) != "gone":
        return None
    return item.module, item.name


@functools.cache
def _margin_imports(module: str) -> tuple[_Import, ...]:
    file = module_file(module)
    if file is None or file.suffix != ".py":
        return ()
    text = installed_text(file)
    return tuple(_read_imports(text, module, file.name == "__init__.py"))


def _read_imports(text: str, module: str, is_package: bool) -> Iterator[_Import]:
    # A comment may hold a bracket; lines keep their numbers.
    text = _CONTINUED.sub(" \f", _COMMENT.sub("", text))
    for match in _MARGIN_IMPORT.finditer(text):
        line = text.count("\n", 0, match.start()) + text.count("\f", 0, match.start()) + 1
        if match[3]:
            for name in match[3].replace("\f", "").split(","):
                yield _Import(name.split(" as ")[0].strip(), None, line)
            continue
        source = _absolute(match[1], module, is_package)
        for name in match[2].replace("\f", "").strip("() \n").split(","):
            plain = re.split(r"\s+as\s+", name.strip())[0].strip()
            if source and plain:
                yield _Import(source, plain, line)


def _absolute(written: str, module: str, is_package: bool) -> str:
    dots = len(written) - len(written.lstrip("."))
    if not dots:
        return written
    parts = module.split(".")
    kept = parts[: len(parts) - dots + is_package]
    return ".".join([*kept, *filter(None, [written[dots:]])])


@functools.cache
def _lazy_table(package: str) -> dict[str, str]:
    """Each name that a lazy package gives to the module that defines it; empty for another."""
    file = module_file(package)
    if file is None or file.name != "__init__.py":
        return {}
    text = installed_text(file)
    return _read_lazy_table(text, package) if "LazyModule(" in text else {}


def _read_lazy_table(text: str, package: str) -> dict[str, str]:
    text = _COMMENT.sub("", text)
    guards = [(guard.start(), _is_met(guard[1])) for guard in _LAZY_GUARD.finditer(text)]
    table: dict[str, str] = {}
    for entry in _LAZY_ENTRY.finditer(text):
        module, added, names = entry.groups()
        if added and not next((met for at, met in reversed(guards) if at < entry.start()), True):
            continue
        for name in re.findall(r"""["'](\w+)["']""", names):
            table.setdefault(name, f"{package}.{module}")
    return table


def _is_met(condition: str) -> bool:
    """Whether all packages of ``is_X_available() and is_Y_available()`` are surely there: those
    that are installed under the name X; others (``tf``, ``vision``) leave it open."""
    return all(
        importable(name) == "there" for name in re.findall(r"\bis_(\w+)_available\(", condition)
    )


def _is_statement(module: str, line: int) -> bool:
    file = module_file(module)
    return file is not None and line in _import_lines(file)


@functools.cache
def _import_lines(file: Path) -> frozenset[int]:
    """Lines of the import statements at the margin of a file, by its syntax tree."""
    try:
        tree = ast.parse(installed_text(file))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    return frozenset(
        node.lineno for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
    )
