"""Statements of plain code, done one after the other; expressions are left to the subclass."""

from __future__ import annotations

import ast
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from lora_doctor.evidence.plain_values import (
    Made,
    NotFollowedError,
    OpenedText,
    is_dictionary,
    short,
)

#: Operations of one run.
_MOST_STEPS = 3_000_000
#: Of the processor, for these and for what the libraries do in between.
_MOST_SECONDS = 30.0


class Left(Exception):
    """A loop or a function is left."""

    def __init__(self, how: str, value: Any = None) -> None:
        super().__init__()
        self.how = how
        self.value = value


class Budget:
    """Operations that are left, the deepest call, and the line that has been reached."""

    def __init__(self) -> None:
        self.steps = _MOST_STEPS
        self.depth = 0
        self._looked = self.steps
        self._until = time.process_time() + _MOST_SECONDS
        #: Of the program; 0 outside of its functions.
        self.line = 0

    def step(self) -> None:
        self.spend(1)

    def spend(self, steps: int) -> None:
        """Raises NotFollowedError where fewer are left, or the time is over."""
        self.steps -= steps
        if self.steps < 0:
            raise NotFollowedError("too many operations")
        if self.steps < self._looked - 1_000 or steps > 100:
            self._looked = self.steps
            if time.process_time() > self._until:
                raise NotFollowedError("too much time")


class Statements(ABC):
    """One call of a function: its names, and what its statements do."""

    names: dict[str, Any]
    budget: Budget
    #: Line of the program in which the first line of the function stands.
    first_line: int

    @abstractmethod
    def value(self, node: ast.expr) -> Any: ...

    @abstractmethod
    def combined(self, kind: type, left: Any, right: Any) -> Any: ...

    @abstractmethod
    def items(self, node: ast.expr) -> Iterator[Any]: ...

    @abstractmethod
    def truth(self, node: ast.expr) -> bool: ...

    @abstractmethod
    def defined(self, node: ast.FunctionDef) -> Any: ...

    def run(self, body: Sequence[ast.stmt]) -> Any:
        try:
            self.block(body)
        except Left as left:
            if left.how != "return":
                raise NotFollowedError(left.how) from None
            return left.value
        return None

    # --- statements ----------------------------------------------------------------------------

    def block(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            self.budget.step()
            self.budget.line = self.first_line + node.lineno - 1
            method = getattr(self, f"_{type(node).__name__.lower()}", None)
            if method is None:
                raise NotFollowedError(type(node).__name__)
            method(node)

    def _pass(self, node: ast.Pass) -> None:
        del node

    def _expr(self, node: ast.Expr) -> None:
        if ast.unparse(node.value) != "super().__init__()":  # of a set of torch, which does nothing
            self.value(node.value)

    def _with(self, node: ast.With) -> None:
        for item in node.items:
            opened = self.value(item.context_expr)
            if not isinstance(opened, OpenedText):
                raise NotFollowedError("with")
            if item.optional_vars is not None:
                self.bind(item.optional_vars, opened)
        self.block(node.body)

    def _return(self, node: ast.Return) -> None:
        raise Left("return", self.value(node.value) if node.value is not None else None)

    def _break(self, node: ast.Break) -> None:
        raise Left("break")

    def _continue(self, node: ast.Continue) -> None:
        raise Left("continue")

    def _assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self.bind(target, value)

    def _annassign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.bind(node.target, self.value(node.value))

    def _augassign(self, node: ast.AugAssign) -> None:
        target: Any = node.target
        old = self.value(_as_read(target))
        new = self.value(node.value)
        if isinstance(old, list) and isinstance(node.op, ast.Add):
            old += new
            self.bind(target, short(old))
        elif isinstance(old, (list, set)) or is_dictionary(old):
            raise NotFollowedError("augmented assignment")  # changes what others hold, too
        else:
            self.bind(target, self.combined(type(node.op), old, new))

    def _if(self, node: ast.If) -> None:
        self.block(node.body if self.truth(node.test) else node.orelse)

    def _assert(self, node: ast.Assert) -> None:
        if not self.truth(node.test):
            raise NotFollowedError("assert")

    def _for(self, node: ast.For) -> None:
        for item in self.items(node.iter):
            self.bind(node.target, item)
            if self._breaks(node.body):
                return
        self.block(node.orelse)

    def _while(self, node: ast.While) -> None:
        while self.truth(node.test):
            if self._breaks(node.body):
                return
        self.block(node.orelse)

    def _breaks(self, body: Sequence[ast.stmt]) -> bool:
        """One round of a loop: whether it is left by ``break``."""
        try:
            self.block(body)
        except Left as left:
            if left.how == "return":
                raise
            return left.how == "break"
        return False

    def _functiondef(self, node: ast.FunctionDef) -> None:
        if node.decorator_list:
            raise NotFollowedError("decorator")
        self.names[node.name] = self.defined(node)

    def bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = list(value)
            starred = any(isinstance(one, ast.Starred) for one in target.elts)
            if starred or len(parts) != len(target.elts):
                raise NotFollowedError("unpacking")
            for one, part in zip(target.elts, parts, strict=True):
                self.bind(one, part)
        elif isinstance(target, ast.Subscript):
            owner = self.value(target.value)
            if not (isinstance(owner, list) or is_dictionary(owner)):
                raise NotFollowedError("entry")
            owner[self.value(target.slice)] = value
        elif isinstance(target, ast.Attribute):
            owner = self.value(target.value)
            if not isinstance(owner, Made):
                raise NotFollowedError("attribute")
            owner.set(target.attr, value)
        else:
            raise NotFollowedError("target")


def _as_read(target: ast.expr) -> ast.expr:
    if isinstance(target, ast.Name):
        return ast.copy_location(ast.Name(target.id, ast.Load()), target)
    if isinstance(target, ast.Subscript):
        read = ast.Subscript(target.value, target.slice, ast.Load())
        return ast.copy_location(read, target)
    raise NotFollowedError("target")
