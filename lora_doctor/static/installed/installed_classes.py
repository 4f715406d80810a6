"""What classes of the installed transformers inherit, from their sources, without importing them.

`modeling_utils.py` has 6,000 lines and takes 0.2 s to parse. The line that opens a class and the
methods in it are found by their indentation instead, which a formatted library keeps.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from lora_doctor.static.installed.environment import installed_text, package_folder

_DEPTH = 12


@functools.cache
def installed_class_has(name: str, method: str) -> bool | None:
    """Whether transformers' class `name` has `method`, its own or inherited within transformers.

    None when transformers is missing, has no such class, or a base cannot be followed.
    """
    return _has(name, method, None, _DEPTH)


def _has(name: str, method: str, file: Path | None, depth: int) -> bool | None:
    found = _locate(name, file) if depth else None
    if found is None:
        return None
    where, bases, body = found
    if re.search(rf"^    def {re.escape(method)}\b", body, re.MULTILINE):
        return True
    answers = [
        False if base.startswith("nn.") or base in _ROOTS else _has(base, method, where, depth - 1)
        for base in bases
    ]
    # A base that cannot be found here is no model class: a mixin of the library or of the language.
    return True in answers


_ROOTS = {"object", "ABC", "Module", "Generic", "Protocol", "torch.nn.Module"}


def _locate(name: str, near: Path | None) -> tuple[Path, list[str], str] | None:
    """The file, the bases and the text of a class.

    Looked for in `near` and where that imports it from; without `near`, in all model files.
    """
    if not name.isidentifier():
        return None
    for file in [near, *_imported_from(name, near)] if near else _candidates(name):
        text = _text(file)
        opened = re.search(rf"^class {name}\b(?:\(([^)]*)\))?\s*:", text, re.MULTILINE)
        if opened:
            end = re.compile(r"^(?:class|def|@|[A-Z_a-z]+ *[=:(])", re.MULTILINE).search(
                text, opened.end()
            )
            bases = [
                base.strip().partition("[")[0]
                for base in (opened.group(1) or "").split(",")
                if base.strip() and "=" not in base
            ]
            return file, bases, text[opened.end() : end.start() if end else len(text)]
    return None


@functools.lru_cache(maxsize=64)
def _text(file: Path) -> str:
    return installed_text(file)


_IMPORT = re.compile(
    r"^from (\.+|transformers\.)([\w.]*) import (?:\(([^)]*)\)|(.*))", re.MULTILINE
)


def _imported_from(name: str, near: Path) -> list[Path]:
    """The files that an import of `name` in `near` may mean; all files of a package."""
    for dots, module, many, one in _IMPORT.findall(_text(near)):
        if re.search(rf"\b{name}\b", many or one):
            relative = dots.startswith(".")
            folder = near.parents[len(dots) - 1] if relative else package_folder("transformers")
            if folder is None:
                return []
            target = folder.joinpath(*module.split(".")) if module else folder
            return [target.with_suffix(".py"), *sorted(target.glob("*.py"))]
    return []


def _candidates(name: str) -> tuple[Path, ...]:
    """The file of transformers that defines `name`, if one does."""
    transformers = package_folder("transformers")
    if transformers is None:
        return ()
    common = ("modeling_utils.py", "generation/utils.py", "modeling_layers.py")
    likely = [transformers / part for part in common]
    # LlamaModel is most likely in models/llama: that folder before all the others.
    plain = name.lower()
    likely += [
        file
        for file in _model_files(transformers)
        if plain.startswith(file.parent.name.replace("_", ""))
    ]
    for file in likely:
        if name in _CLASS.findall(_text(file)):
            return (file,)
    found = _class_files(transformers).get(name)
    return (found,) if found else ()


_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


@functools.cache
def _model_files(transformers: Path) -> tuple[Path, ...]:
    return tuple(sorted(transformers.glob("models/*/modeling_*.py")))


@functools.cache
def _class_files(transformers: Path) -> dict[str, Path]:
    """The first file of each class of all model files; each is read once, for all questions."""
    files: dict[str, Path] = {}
    for file in _model_files(transformers):
        for name in _CLASS.findall(installed_text(file)):
            files.setdefault(name, file)
    return files
