"""What classes of the installed transformers inherit, from their sources, without importing them.

`modeling_utils.py` has 6,000 lines and takes 0.2 s to parse. The line that opens a class and the
methods in it are found by their indentation instead, which a formatted library keeps.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from lora_doctor.static.installed.environment import package_folder

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


@functools.cache
def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


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
    """Files of transformers that may define `name`; model files are read only until one does."""
    transformers = package_folder("transformers")
    if transformers is None:
        return ()
    opened = re.compile(rf"^class {name}\b".encode(), re.MULTILINE)
    common = ("modeling_utils.py", "generation/utils.py", "modeling_layers.py")
    files = [transformers / part for part in common]
    plain = name.lower()
    # LlamaModel is most likely in models/llama: that folder first, then all the others.
    files += sorted(
        transformers.glob("models/*/modeling_*.py"),
        key=lambda file: (not plain.startswith(file.parent.name.replace("_", "")), file),
    )
    for file in files:
        try:
            content = file.read_bytes()
        except OSError:
            continue  # a file that cannot be read defines nothing for us
        # The plain search is ten times as fast as the pattern, and nearly always says no.
        if f"class {name}".encode() in content and opened.search(content):
            return (file,)
    return ()
