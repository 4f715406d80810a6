"""The order of things in a training script: PEFT called twice, an optimizer made too early.

Only statements that follow one another in the same block are compared: nothing can come between.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lora_doctor.limits import step
from lora_doctor.static.python_source import unparse, walk
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
    for statements in _blocks(tree):
        block = _Block(names)
        block.read(statements)
        early += block.early_optimizers
        twice += block.wrapped_twice
    return ScriptOrder(tuple(early), tuple(twice))


class _Block:
    """One block, read statement by statement: what is wrapped and optimized so far."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.wrapped_twice: list[WrappedTwice] = []
        #: Variable of a model that has adapters, to the line that put them on.
        self._wrapped: dict[str, int] = {}
        #: Variable of an optimizer, to the model it is over and the statement that made it.
        self._optimizers: dict[str, tuple[str, ast.stmt]] = {}
        #: Variable of an optimizer that was made too early, unless it is made again or extended.
        self._early: list[tuple[str, EarlyOptimizer]] = []

    @property
    def early_optimizers(self) -> list[EarlyOptimizer]:
        return [item for _, item in self._early]

    def read(self, statements: list[ast.stmt]) -> None:
        for node in statements:
            for name in _calls(node, _UNDO):
                self._wrapped.pop(name, None)
            written = _written(node)
            renewed = written | _calls(node, {"add_param_group"})
            self._early = [(name, item) for name, item in self._early if name not in renewed]
            model = _wraps(node, self.names)
            if model is not None:
                self._wrap(model, node)
            self._forget(written)
            optimized = _optimizer_over(node)
            if model is not None:
                self._wrapped.update(dict.fromkeys(written, node.lineno))
            elif optimized is not None:
                self._optimizers.update(dict.fromkeys(written, (optimized, node)))

    def _wrap(self, model: str, node: ast.stmt) -> None:
        """``get_peft_model`` is called on a model here: was it before, and who optimizes it?"""
        if model in self._wrapped:
            first = self._wrapped[model]
            self.wrapped_twice.append(WrappedTwice(model, first, node.lineno, unparse(node)))
        step(len(self._optimizers))
        for variable, (optimized, made) in self._optimizers.items():
            if optimized == model:
                code = unparse(made).split("\n")[0]
                early = EarlyOptimizer(model, made.lineno, node.lineno, code)
                self._early.append((variable, early))

    def _forget(self, written: Collection[str]) -> None:
        """These names stand for something else from here on."""
        step(len(self._optimizers))
        for name in written:
            self._wrapped.pop(name, None)
        self._optimizers = {
            variable: (model, made)
            for variable, (model, made) in self._optimizers.items()
            if variable not in written and model not in written
        }


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
    return unparse(first) if isinstance(first, (ast.Name, ast.Attribute)) else None


def _optimizer_over(node: ast.stmt) -> str | None:
    """The model of ``optimizer = AdamW(model.parameters(), …)``."""
    value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    if not isinstance(value, ast.Call):
        return None
    called = unparse(value.func).rpartition(".")[2]
    if not (called.startswith(("Adam", "SGD", "Paged", "Lion", "RMSprop")) or "Adam" in called):
        return None
    for item in walk(value):
        if (
            isinstance(item, ast.Call)
            and isinstance(item.func, ast.Attribute)
            and item.func.attr in ("parameters", "named_parameters")
            and isinstance(item.func.value, (ast.Name, ast.Attribute))
        ):
            return unparse(item.func.value)
    return None


def _written(node: ast.stmt) -> set[str]:
    """Names that a statement sets, in its own blocks too."""
    found = set()
    for item in walk(node):
        targets: list[ast.expr] = []
        if isinstance(item, ast.Assign):
            targets = item.targets
        elif isinstance(item, (ast.AnnAssign, ast.AugAssign, ast.For)):
            targets = [item.target]
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(part, (ast.Name, ast.Attribute)):
                    found.add(unparse(part))
    return found


def _calls(node: ast.stmt, methods: Collection[str]) -> set[str]:
    """What a statement calls one of these methods of."""
    return {
        unparse(item.func.value)
        for item in walk(node)
        if isinstance(item, ast.Call)
        and isinstance(item.func, ast.Attribute)
        and item.func.attr in methods
    }


def _blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block
