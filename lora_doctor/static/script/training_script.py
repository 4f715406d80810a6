"""A training script, read with ``ast`` and never run: where it hides numbers that are not finite.

Only what the source proves: a replaced value is reported when it is a loss, a gradient, an
activation or a weight, and when what replaces it goes on into the training (a backward, a returned
loss, an output, a gradient's own place). Logs, metrics and evaluation are left alone, and so is a
step that is skipped or stopped.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.errors import EvidenceError, InputError, NotPythonError
from lora_doctor.limits import PYTHON_BYTES, SCRIPT, bounded
from lora_doctor.static.piece import read_bytes
from lora_doctor.static.python_source import parse_python, unparse, walk
from lora_doctor.static.script.adapter_calls import AdapterCall, read_adapter_calls
from lora_doctor.static.script.script_flow import FUNCTIONS, Flow, Replacement, without_gradients
from lora_doctor.static.script.script_order import ScriptOrder, read_order
from lora_doctor.static.script.script_values import Names, Scope

__all__ = ["Replacement", "TrainingScript", "read_training_script"]

_MODULES = ("Module", "PreTrainedModel", "LightningModule")
_HOOKS = ("register_hook",)


@dataclass(frozen=True)
class TrainingScript:
    """What was read from a script."""

    #: The file.
    path: Path
    #: How many lines it has.
    lines: int
    #: Where values that may not be finite are replaced, in the order of their lines.
    replacements: tuple[Replacement, ...]
    #: In which order the script calls what loads, wraps and trains.
    order: ScriptOrder
    #: Where it calls methods of transformers that ask for a version of PEFT.
    adapter_calls: tuple[AdapterCall, ...] = ()


def read_training_script(path: Path, data: bytes | None = None) -> TrainingScript:
    """Read a script; ``data``: its content, where that is not what the file has now.

    Raises:
        InputError: it cannot be read, or is not Python that this Python knows.
    """
    where = f"MODEL {str(path)!r}"
    try:
        content = read_bytes(path, PYTHON_BYTES) if data is None else data
        source = content.decode("utf-8-sig")
        with bounded(SCRIPT):
            tree = parse_python(source, path.name)
            found = sorted(_Reader(tree, source).read(), key=lambda item: item.line)
            names = Names.of(tree)
            order = read_order(tree, names)
            calls = read_adapter_calls(tree, names)
    except UnicodeDecodeError:
        raise InputError(f"{where}: is not UTF-8 text") from None
    except NotPythonError as error:
        raise InputError(f"{where}: is {error}") from None
    except EvidenceError as error:
        raise InputError(f"{where}: {error}") from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply to be read") from None
    unique = {item.line: item for item in reversed(found)}
    lines = source.count("\n") + 1
    return TrainingScript(path, lines, tuple(unique[line] for line in sorted(unique)), order, calls)


class _Reader:
    def __init__(self, tree: ast.Module, source: str) -> None:
        self.tree = tree
        self.lines = source.splitlines()
        self.names = Names.of(tree)
        self.hooked = _hooked_functions(tree)

    def read(self) -> Iterator[Replacement]:
        yield from self._function(self.tree, self.tree.body, frozenset(), is_module=True)

    def _function(
        self,
        node: ast.AST,
        body: list[ast.stmt],
        layers: frozenset[str],
        *,
        is_module: bool = False,
        outer: Scope | None = None,
    ) -> Iterator[Replacement]:
        """One function (or the file itself), then those that stand in it."""
        parameters = _parameters(node)
        scope = Scope(self.names.without(parameters), layers)
        if outer is not None:
            scope.constants = set(outer.constants)
            scope.large = set(outer.large)
        name = getattr(node, "name", "")
        if name in self.hooked and parameters:
            scope.kinds[parameters[-1]] = "gradient"
        decorators = getattr(node, "decorator_list", [])
        quiet = any(without_gradients(item, scope) for item in decorators)
        yield from Flow(self.code, scope, name, body, is_module, quiet=quiet).run()
        for item in _nested(body):
            if isinstance(item, ast.ClassDef):
                inner = _layers_of(item) if _is_module_class(item) else frozenset()
                for method in item.body:
                    if isinstance(method, FUNCTIONS):
                        yield from self._function(method, method.body, inner)
            else:
                yield from self._function(item, item.body, layers, outer=scope)

    def code(self, node: ast.AST) -> str:
        line = self.lines[getattr(node, "lineno", 1) - 1].strip()
        return line if len(line) <= 160 else f"{line[:157]}..."


def _hooked_functions(tree: ast.AST) -> frozenset[str]:
    """Names of functions that are registered as gradient hooks of tensors."""
    return frozenset(
        node.args[0].id
        for node in walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _HOOKS
        and node.args
        and isinstance(node.args[0], ast.Name)
    )


def _parameters(node: ast.AST) -> list[str]:
    if not isinstance(node, FUNCTIONS):
        return []
    given = node.args
    return [item.arg for item in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def _nested(
    body: list[ast.stmt],
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions and classes that stand in this body, not inside one another."""
    stack: list[ast.AST] = list(reversed(body))
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node
        else:
            stack += list(ast.iter_child_nodes(node))


def _is_module_class(node: ast.ClassDef) -> bool:
    bases = [unparse(base).rpartition(".")[2] for base in node.bases]
    return any(base.endswith((*_MODULES, "Model")) or "For" in base for base in bases)


def _layers_of(node: ast.ClassDef) -> frozenset[str]:
    """Attributes that ``__init__`` sets to something that was called: ``self.proj = Linear(…)``."""
    found = set()
    for item in walk(node):
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Call):
            for target in item.targets:
                owner = getattr(target, "value", None)
                if isinstance(target, ast.Attribute) and getattr(owner, "id", "") == "self":
                    kind = unparse(item.value.func).rpartition(".")[2]
                    if kind[:1].isupper() or kind in ("from_pretrained", "from_config"):
                        found.add(target.attr)
    return frozenset(found)
