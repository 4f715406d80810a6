"""What the installed datasets can do with all splits of a set together: read, never imported."""

from __future__ import annotations

import ast
import functools

from lora_doctor.static.installed.environment import installed_tree, package_folder
from lora_doctor.static.python_source import walk

_FILE = "dataset_dict.py"
#: The classes that hold all splits, and which one a streamed set is.
SPLITS, STREAMED_SPLITS = "DatasetDict", "IterableDatasetDict"


def splits_have(kind: str, name: str) -> bool | None:
    """Whether objects of the class have the attribute; ``None`` where its source does not say."""
    node = _classes().get(kind)
    if node is None or any(one.name in ("__getattr__", "__getattribute__") for one in _own(node)):
        return None
    if not all("dict" in ast.unparse(base) for base in node.bases):
        return None  # inherits from something that is not read
    # As plain words: `self.name = …` in a method counts as well as a method.
    words = {one.attr for one in walk(node) if isinstance(one, ast.Attribute)}
    words |= {one.id for one in walk(node) if isinstance(one, ast.Name)}
    return name in words or hasattr(dict, name) or any(one.name == name for one in _own(node))


@functools.cache
def packaged_readers() -> frozenset[str]:
    """The readers of files that come with the package: ``json``, ``csv`` and the like."""
    folder = package_folder("datasets")
    found = folder.glob("packaged_modules/*/__init__.py") if folder is not None else ()
    return frozenset(file.parent.name for file in found)


def stays_splits(kind: str, method: str) -> bool:
    """Whether a method returns all splits again, by its annotation."""
    node = _classes().get(kind)
    return node is not None and any(
        one.name == method and one.returns is not None and kind in ast.unparse(one.returns)
        for one in _own(node)
    )


def _own(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [one for one in node.body if isinstance(one, ast.FunctionDef)]


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    folder = package_folder("datasets")
    tree = installed_tree(folder / _FILE) if folder is not None else None
    if tree is None:
        return {}
    return {one.name: one for one in tree.body if isinstance(one, ast.ClassDef)}
