"""The order of things in a training script: PEFT called twice, an optimizer made too early.

Only statements that follow one another in the same block are compared: nothing can come between.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lora_doctor.static.script.script_values import Names

_UNDO = frozenset({"unload", "merge_and_unload", "get_base_model", "delete_adapter"})


@dataclass(frozen=True)
class EarlyOptimizer:
    """An optimizer over the parameters of ``model``, made in ``line`` and not again after the
    adapters came in ``wrapped_line``: it holds none of theirs."""

    model: str
    line: int
    wrapped_line: int
    code: str


@dataclass(frozen=True)
class WrappedTwice:
    """``get_peft_model`` called on what another such call has returned."""

    model: str
    first_line: int
    line: int
    code: str


@dataclass(frozen=True)
class ScriptOrder:
    """What the order of statements proves."""

    early_optimizers: tuple[EarlyOptimizer, ...] = ()
    wrapped_twice: tuple[WrappedTwice, ...] = ()


def read_order(tree: ast.Module, names: Names) -> ScriptOrder:
    """Read every block of a file."""
    early: list[EarlyOptimizer] = []
    twice: list[WrappedTwice] = []
    for block in _blocks(tree):
        _read_block(block, names, early, twice)
    return ScriptOrder(tuple(early), tuple(twice))


def _read_block(
    block: list[ast.stmt], names: Names, early: list[EarlyOptimizer], twice: list[WrappedTwice]
) -> None:
    wrapped: dict[str, int] = {}
    optimizers: dict[str, tuple[str, ast.stmt]] = {}  # variable -> model, where
    late: list[tuple[str, EarlyOptimizer]] = []
    for node in block:
        for name in _calls(node, _UNDO):
            wrapped.pop(name, None)
        written = _written(node)
        written_or_extended = written | _calls(node, {"add_param_group"})
        late = [(name, item) for name, item in late if name not in written_or_extended]
        given = _wraps(node, names)
        held = _optimizer_over(node)
        if given is not None:
            if given in wrapped:
                twice.append(WrappedTwice(given, wrapped[given], node.lineno, ast.unparse(node)))
            for variable, (model, where) in optimizers.items():
                if model == given:
                    code = ast.unparse(where).split("\n")[0]
                    item = EarlyOptimizer(model, where.lineno, node.lineno, code)
                    late.append((variable, item))
        for name in written:
            wrapped.pop(name, None)
            optimizers.pop(name, None)
            optimizers = {key: pair for key, pair in optimizers.items() if pair[0] != name}
        if given is not None:
            for name in written:
                wrapped[name] = node.lineno
        elif held is not None:
            for name in written:
                optimizers[name] = (held, node)
    early += [item for _, item in late]


def _wraps(node: ast.stmt, names: Names) -> str | None:
    """The model of ``… = get_peft_model(model, …)``."""
    value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    if not isinstance(value, ast.Call) or names.full(value.func) != "peft.get_peft_model":
        return None
    first = (
        value.args[0]
        if value.args
        else next((item.value for item in value.keywords if item.arg == "model"), None)
    )
    return ast.unparse(first) if isinstance(first, (ast.Name, ast.Attribute)) else None


def _optimizer_over(node: ast.stmt) -> str | None:
    """The model of ``optimizer = AdamW(model.parameters(), …)``."""
    value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    if not isinstance(value, ast.Call):
        return None
    called = ast.unparse(value.func).rpartition(".")[2]
    if not (called.startswith(("Adam", "SGD", "Paged", "Lion", "RMSprop")) or "Adam" in called):
        return None
    for item in ast.walk(value):
        if (
            isinstance(item, ast.Call)
            and isinstance(item.func, ast.Attribute)
            and item.func.attr in ("parameters", "named_parameters")
            and isinstance(item.func.value, (ast.Name, ast.Attribute))
        ):
            return ast.unparse(item.func.value)
    return None


def _written(node: ast.stmt) -> set[str]:
    """Names that a statement sets, in its own blocks too."""
    found = set()
    for item in ast.walk(node):
        targets: list[ast.expr] = []
        if isinstance(item, ast.Assign):
            targets = item.targets
        elif isinstance(item, (ast.AnnAssign, ast.AugAssign, ast.For)):
            targets = [item.target]
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(part, (ast.Name, ast.Attribute)):
                    found.add(ast.unparse(part))
    return found


def _calls(node: ast.stmt, methods: Collection[str]) -> set[str]:
    """What a statement calls one of these methods of."""
    return {
        ast.unparse(item.func.value)
        for item in ast.walk(node)
        if isinstance(item, ast.Call)
        and isinstance(item.func, ast.Attribute)
        and item.func.attr in methods
    }


def _blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block
