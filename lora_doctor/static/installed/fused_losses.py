"""Losses that take the weight of the output head instead of calling it, by the installed source.

Such a loss never runs the head's forward, so that an adapter on it has no part in the loss. Liger's
forwards and TRL's trainers are read, never imported.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lora_doctor.static.installed.environment import installed_text, package_folder

_LIGER = ("transformers", "monkey_patch.py")
_FORWARDS = "liger_kernel.transformers.model."
_TABLE = "MODEL_TYPE_TO_APPLY_LIGER_FN"
_READS = re.compile(r"\blm_head\.weight\b")


@dataclass(frozen=True)
class SourceLine:
    """A line of an installed file. ``file``: from the package on."""

    file: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Refusal:
    """Where a trainer raises for an adapter on the head."""

    place: SourceLine
    #: What it raises.
    message: str
    #: Whether it does so only where the recipe asks for Liger's kernels.
    with_liger: bool


def liger_version() -> str:
    """Of the installed Liger kernel; empty where there is none."""
    if package_folder("liger_kernel") is None:
        return ""
    try:
        return metadata.version("liger-kernel")
    except metadata.PackageNotFoundError:
        return "of no known version"


@functools.cache
def liger_reads_head(model_type: str) -> SourceLine | None:
    """The line of Liger's forward for this model type that takes the head's weight; ``None`` where
    Liger is not installed or has none for it."""
    folder = package_folder("liger_kernel")
    tree = _tree(folder.joinpath(*_LIGER)) if folder is not None else None
    function = _function_for(tree, model_type) if tree is not None else None
    if folder is None or tree is None or function is None or not _is_fused_by_default(function):
        return None
    for module in _forwards_of(tree, function):
        path = folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
        for number, line in enumerate(installed_text(path).splitlines(), start=1):
            if _READS.search(line) and not line.lstrip().startswith("#"):
                return SourceLine(str(path.relative_to(folder.parent)), number, line.strip())
    return None


def _function_for(tree: ast.Module, model_type: str) -> ast.FunctionDef | None:
    """The function that Liger applies to a model type, by its own table."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(name, ast.Name) and name.id == _TABLE for name in targets):
            table = node.value if isinstance(node, ast.Assign) else None
            if isinstance(table, ast.Dict):
                for key, value in zip(table.keys, table.values, strict=True):
                    is_it = isinstance(key, ast.Constant) and key.value == model_type
                    if is_it and isinstance(value, ast.Name):
                        return functions.get(value.id)
    return None


def _is_fused_by_default(function: ast.FunctionDef) -> bool:
    """Whether the function replaces the loss unless it is told not to."""
    arguments = function.args.args
    defaults = function.args.defaults
    for argument, default in zip(
        arguments[len(arguments) - len(defaults) :], defaults, strict=True
    ):
        if argument.arg == "fused_linear_cross_entropy":
            return isinstance(default, ast.Constant) and default.value is True
    return False


def _forwards_of(tree: ast.Module, function: ast.FunctionDef) -> Iterator[str]:
    """Modules of the forwards that a function of Liger's puts into a model."""
    imports: dict[str, str] = {}
    for scope in (tree.body, ast.walk(function)):  # what the function imports itself wins
        for node in scope:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_FORWARDS):
                imports.update((name.asname or name.name, str(node.module)) for name in node.names)
    used = (node.id for node in ast.walk(function) if isinstance(node, ast.Name))
    yield from dict.fromkeys(imports[name] for name in used if name in imports)


@functools.cache
def trl_refuses_head(trainer: str) -> Refusal | None:
    """Where the ``__init__`` of a trainer of the installed TRL raises for an adapter on the head;
    ``None`` where it does not, under other conditions only, or is not installed."""
    folder = package_folder("trl")
    if folder is None:
        return None
    short = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", trainer.removesuffix("Trainer")).lower()
    path = folder / "trainer" / f"{short}_trainer.py"
    tree = _tree(path)
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef) and node.name == trainer:
            for tests, test in _tests(node.body, ()):
                found = _refusal(path.relative_to(folder.parent), tests, test)
                if found is not None:
                    return found
    return None


def _tests(
    body: list[ast.stmt], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], ast.If]]:
    """Each ``if`` of a class, with the conditions around it and its own."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            yield from _tests(node.body, above)
        elif isinstance(node, ast.If):
            inside = (*above, ast.unparse(node.test))
            yield inside, node
            yield from _tests(node.body, inside)


def _refusal(path: Path, tests: tuple[str, ...], node: ast.If) -> Refusal | None:
    raised = next((one for one in node.body if isinstance(one, ast.Raise)), None)
    if "BaseTunerLayer" not in tests[-1] or "output_embeddings" not in tests[-1] or raised is None:
        return None
    others = " and ".join(tests).replace("is_peft_model(model)", "")
    with_liger = "liger" in others
    if not with_liger and len([test for test in tests[:-1] if "is_peft" not in test]):
        return None  # under a condition that is not known here
    texts = [one.value for one in ast.walk(raised) if isinstance(one, ast.Constant)]
    message = next((text for text in texts if isinstance(text, str)), "")
    line = SourceLine(str(path), node.lineno, f"if {tests[-1]}: raise")
    return Refusal(line, message.strip(), with_liger)


@functools.cache
def _tree(path: Path) -> ast.Module | None:
    try:
        return ast.parse(installed_text(path))
    except SyntaxError:  # cut, or not Python of this version
        return None
