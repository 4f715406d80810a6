"""Where a training script calls transformers' own methods for adapters (``model.add_adapter``)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.limits import step
from lora_doctor.static.installed.peft_minimum import peft_minimum
from lora_doctor.static.python_source import unparse, walk
from lora_doctor.static.script.script_values import Names

_MAKERS = ("from_pretrained", "from_config")


@dataclass(frozen=True)
class AdapterCall:
    """``model.method(...)`` in ``line``, on what a class of transformers has loaded."""

    model: str
    model_class: str
    method: str
    line: int
    code: str


def read_adapter_calls(tree: ast.Module, names: Names) -> tuple[AdapterCall, ...]:
    """The calls, in the order of their lines.

    A variable counts that is assigned models of transformers and nothing else in the whole file: a
    ``PeftModel`` has methods of the same names.
    """
    minimum = peft_minimum()
    if minimum is None:
        return ()
    loaded = _loaded(tree, names)
    found = [
        AdapterCall(
            node.func.value.id,
            loaded[node.func.value.id],
            node.func.attr,
            node.lineno,
            unparse(node).split("\n")[0],
        )
        for node in walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in loaded
        and node.func.attr in minimum.methods
    ]
    return tuple(sorted(found, key=lambda call: call.line))


def _loaded(tree: ast.Module, names: Names) -> dict[str, str]:
    """Variables that hold models of transformers, each with the class that loads it."""
    classes: dict[str, str | None] = {}
    for name, value in _assigned(tree):
        step()
        found = _class_of(value, names)
        classes[name] = found if classes.get(name, found) == found else None
    return {name: found for name, found in classes.items() if found}


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr | None]]:
    """Each name that is bound in the file, with its value where it has one of its own."""
    for node in walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
                else:
                    yield from ((name, None) for name in _bound_in(target))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value
        elif isinstance(node, ast.arg):
            yield node.arg, None
        elif isinstance(node, (ast.For, ast.NamedExpr)):
            yield from ((name, None) for name in _bound_in(node.target))
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            yield from ((name, None) for name in _bound_in(node.optional_vars))


def _bound_in(node: ast.AST) -> list[str]:
    """The names that are bound in what is assigned to."""
    return [
        inner.id
        for inner in walk(node)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
    ]


def _class_of(value: ast.expr | None, names: Names) -> str | None:
    """The class of transformers in ``AutoModel.from_pretrained(...)``."""
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
        return None
    if value.func.attr not in _MAKERS:
        return None
    full = names.full(value.func.value)
    return full.rpartition(".")[2] if full and full.startswith("transformers.") else None
