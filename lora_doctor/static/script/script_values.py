"""What an expression of a training script stands for: a loss, a gradient, an activation, a weight.

Told by where the value comes from (``.grad``, ``.logits``, a layer called in a module's method, a
loss function) and by the names that all of this ecosystem uses (``loss``, ``hidden_states``,
``inputs_embeds``). What cannot be told is ``None``: then nothing is said about it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from lora_doctor.limits import step
from lora_doctor.static.python_source import dump, walk

Kind = Literal["loss", "gradient", "activation", "weight"]

_NAMES: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"(.*_)?loss(es)?"), "loss"),
    (re.compile(r"(.*_)?grad(s|ient|ients)?|grad_(in|out)(put)?s?"), "gradient"),
    (
        re.compile(
            r"(.*_)?(hidden_states?|logits|embeds|activations?)|last_hidden_state|hidden_out"
        ),
        "activation",
    ),
)
#: Attributes of the outputs of transformers' models, and of parameters.
_ATTRIBUTES: dict[str, Kind] = {
    "grad": "gradient", "loss": "loss", "logits": "activation", "hidden_states": "activation",
    "last_hidden_state": "activation", "pooler_output": "activation",
}  # fmt: skip
_MODEL = re.compile(r"(.*_)?(model|encoder|decoder|backbone|llm)")
_LOSS_CALL = re.compile(r"(.*_)?(loss|criterion|loss_(fn|func|fct|function))|\w*Loss|cross_entropy")
#: Methods and functions after which a value is a copy for a log, a truth value, or another thing.
LOST = frozenset({
    "item", "detach", "numpy", "tolist", "isnan", "isinf", "isfinite", "argmax", "argmin", "size",
    "dim", "numel", "eq", "ne", "gt", "lt", "ge", "le", "any", "all", "bool", "long", "int",
    "backward", "softmax", "sigmoid", "shape", "format", "nonzero", "topk", "argsort",
})  # fmt: skip
_VIEWS = frozenset({"item", "detach", "cpu", "float", "abs", "mean", "sum"})
_NOT_VALUES = frozenset({"shape", "dtype", "device", "requires_grad", "grad_fn", "ndim", "is_cuda"})
_CREATORS = frozenset({
    "tensor", "as_tensor", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like",
    "new_zeros", "new_ones", "new_full", "new_tensor", "FloatTensor", "Tensor", "scalar_tensor",
    "zeros_", "empty", "arange", "rand", "randn", "finfo", "no_grad",
})  # fmt: skip
_CONSTANTS = _CREATORS - {"arange", "rand", "randn", "empty", "finfo", "no_grad"}
#: A bound as large as this has no use but to keep float16 (largest number 65504) from overflowing.
LARGE = 1e4


@dataclass
class Names:
    """What the imports of a file call things: ``{"t": "torch", "F": "torch.nn.functional"}``."""

    imported: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: ast.AST) -> Names:
        found: dict[str, str] = {}
        for node in walk(tree):
            if isinstance(node, ast.Import):
                for item in node.names:
                    name = item.asname or item.name.split(".")[0]
                    found[name] = item.name if item.asname else name
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for item in node.names:
                    found[item.asname or item.name] = f"{node.module}.{item.name}"
        return cls(found)

    def without(self, bound: Iterable[str]) -> Names:
        """The names where ``bound`` ones are local variables."""
        hidden = set(bound)
        step(len(self.imported))
        return Names({key: value for key, value in self.imported.items() if key not in hidden})

    def full(self, expression: ast.expr) -> str | None:
        """The dotted name of an imported thing, such as ``torch.isnan``."""
        parts: list[str] = []
        node = expression
        while isinstance(node, ast.Attribute):
            step()
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.imported:
            return None
        return ".".join([self.imported[node.id], *reversed(parts)])

    def numeric(self, expression: ast.expr) -> str | None:
        """The last part of a name of torch, numpy or math; ``None`` for others."""
        full = self.full(expression)
        if full is None or full.split(".")[0] not in ("torch", "numpy", "math"):
            return None
        return full.rpartition(".")[2]


@dataclass(frozen=True)
class Called:
    """A call taken apart: ``torch.clamp(x, 0)`` and ``x.clamp(0)`` are the same."""

    name: str
    value: ast.expr | None
    rest: tuple[ast.expr, ...]
    keywords: dict[str, ast.expr]
    method: bool


def called(node: ast.AST, names: Names) -> Called | None:
    """A call of a function of torch, numpy or math, or of a method; ``None`` for other nodes."""
    step()
    if not isinstance(node, ast.Call):
        return None
    step(len(node.keywords))
    keywords = {item.arg: item.value for item in node.keywords if item.arg}
    numeric = names.numeric(node.func)
    if numeric is not None:
        value = node.args[0] if node.args else keywords.get("input")
        return Called(numeric, value, tuple(node.args[1:]), keywords, False)
    if names.full(node.func) is None and isinstance(node.func, ast.Attribute):
        return Called(node.func.attr, node.func.value, tuple(node.args), keywords, True)
    return None


@dataclass
class Scope:
    """The values of one function. ``layers``: attributes of ``self`` that are modules."""

    names: Names
    layers: frozenset[str] = frozenset()
    kinds: dict[str, Kind | None] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    large: set[str] = field(default_factory=set)
    masks: dict[str, ast.expr] = field(default_factory=dict)

    def kind(self, node: ast.expr | None) -> Kind | None:
        """What the expression stands for."""
        step()
        if isinstance(node, ast.Name):
            return self.kinds[node.id] if node.id in self.kinds else by_name(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Subscript):
            key = node.slice
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                return by_name(key.value) or self.kind(node.value)
            return self.kind(node.value)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.BinOp):
            return strongest((self.kind(node.left), self.kind(node.right)))
        if isinstance(node, ast.UnaryOp):
            return None if isinstance(node.op, (ast.Not, ast.Invert)) else self.kind(node.operand)
        if isinstance(node, ast.IfExp):
            return strongest((self.kind(node.body), self.kind(node.orelse)))
        if isinstance(node, (ast.List, ast.Tuple)):
            return strongest(self.kind(item) for item in node.elts)
        return None

    def _attribute(self, node: ast.Attribute) -> Kind | None:
        if node.attr in _NOT_VALUES:
            return None
        if node.attr == "data":
            return self.kind(node.value)
        if node.attr in _ATTRIBUTES:
            return _ATTRIBUTES[node.attr]
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return by_name(node.attr)
        inner = self.kind(node.value)
        return inner if inner != "weight" else None

    def _call(self, node: ast.Call) -> Kind | None:
        part = called(node, self.names)
        last = _last(node.func)
        if part is not None and (part.name in LOST or part.name in _CREATORS):
            return None
        if last is not None and _LOSS_CALL.fullmatch(last):
            return "loss"
        if isinstance(node.func, ast.Call):  # nn.CrossEntropyLoss()(logits, labels)
            inner = _last(node.func.func)
            return "loss" if inner and _LOSS_CALL.fullmatch(inner) else None
        if self._is_layer(node.func):
            return "activation"
        if part is None:
            if isinstance(node.func, ast.Name) and node.func.id == "sum" and node.args:
                return self.kind(node.args[0])
            return None
        return self.kind(part.value)

    def _is_layer(self, function: ast.expr) -> bool:
        """Whether a call of this runs a module."""
        if isinstance(function, ast.Attribute):
            if isinstance(function.value, ast.Name) and function.value.id == "self":
                return function.attr in self.layers or bool(_MODEL.fullmatch(function.attr))
            return False
        return isinstance(function, ast.Name) and bool(_MODEL.fullmatch(function.id))

    def constant(self, node: ast.expr | None) -> bool:
        """Whether the expression is a number that nothing was computed for."""
        step()
        if isinstance(node, ast.Constant):
            return isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
        if isinstance(node, ast.UnaryOp):
            return self.constant(node.operand)
        if isinstance(node, ast.Name):
            return node.id in self.constants
        part = called(node, self.names) if node is not None else None
        if part is None:
            return False
        if part.name in ("to", "requires_grad_", "cuda", "float", "half", "clone"):
            return self.constant(part.value)
        if part.name in ("tensor", "as_tensor", "scalar_tensor", "FloatTensor", "Tensor"):
            given = part.value
            if isinstance(given, (ast.List, ast.Tuple)):
                return all(self.constant(item) for item in given.elts)
            return self.constant(given)
        return part.name in _CONSTANTS

    def is_large(self, node: ast.expr | None) -> bool:
        """Whether the expression is a bound near the end of what float16 holds, or at it."""
        if isinstance(node, ast.Constant):
            return isinstance(node.value, (int, float)) and abs(node.value) >= LARGE
        if isinstance(node, ast.UnaryOp):
            return self.is_large(node.operand)
        if isinstance(node, ast.BinOp):
            return self.is_large(node.left)
        if isinstance(node, ast.Name):
            return node.id in self.large
        if isinstance(node, ast.Attribute) and node.attr in ("max", "min"):
            part = called(node.value, self.names)
            return part is not None and part.name == "finfo"
        return False

    def non_finite(self, test: ast.expr) -> list[tuple[ast.expr, bool]]:
        """The values whose finiteness a test asks for, and whether it holds for bad ones."""
        step()
        if isinstance(test, ast.Name):
            return [(self.masks[test.id], True)] if test.id in self.masks else []
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, (ast.Not, ast.Invert)):
            return [(value, not bad) for value, bad in self.non_finite(test.operand)]
        if isinstance(test, ast.BoolOp):
            return [item for value in test.values for item in self.non_finite(value)]
        if isinstance(test, ast.BinOp) and isinstance(test.op, (ast.BitOr, ast.BitAnd)):
            return [*self.non_finite(test.left), *self.non_finite(test.right)]
        if isinstance(test, ast.Compare):
            return self._non_finite_compared(test)
        return self._non_finite_called(test)

    def _non_finite_compared(self, test: ast.Compare) -> list[tuple[ast.expr, bool]]:
        """``x != x``, and a count of bad values held against zero."""
        if len(test.ops) != 1:
            return []
        left, right = test.left, test.comparators[0]
        if isinstance(test.ops[0], ast.NotEq) and same(left, right):
            return [(left, True)]
        if isinstance(test.ops[0], (ast.Gt, ast.NotEq)) and isinstance(right, ast.Constant):
            return self.non_finite(left) if right.value == 0 else []
        return []

    def _non_finite_called(self, test: ast.expr) -> list[tuple[ast.expr, bool]]:
        """``torch.isnan(x)``, ``x.isfinite()``, and functions of such a test."""
        part = called(test, self.names)
        if part is None or part.value is None:
            if isinstance(test, ast.Call) and _last(test.func) == "bool" and test.args:
                return self.non_finite(test.args[0])
            return []
        if part.name in ("isnan", "isinf"):
            return [(part.value, True)]
        if part.name == "isfinite":
            return [(part.value, False)]
        if part.name in ("any", "all", "item", "sum", "logical_not", "logical_or", "max"):
            inner = [item for value in (part.value, *part.rest) for item in self.non_finite(value)]
            flip = part.name == "logical_not"
            return [(value, bad != flip) for value, bad in inner]
        return []

    def stem(self, node: ast.expr) -> ast.expr:
        """The value that a log, a mean or ``.data`` of it is taken from."""
        while True:
            if isinstance(node, ast.Attribute) and node.attr == "data":
                node = node.value
                continue
            part = called(node, self.names)
            if part is None or part.value is None or part.name not in _VIEWS:
                return node
            node = part.value

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        """Remember what a name stands for now."""
        if isinstance(target, (ast.Tuple, ast.List)):
            pairs: Iterator[tuple[ast.expr, ast.expr | None]]
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts):
                pairs = iter(zip(target.elts, value.elts, strict=True))
                for one, other in pairs:
                    if other is not None:
                        self.assign(one, other)
            return
        if not isinstance(target, ast.Name):
            return
        name = target.id
        kind = self.kind(value)
        self.kinds[name] = kind or (None if _says_what_it_is(value) else by_name(name))
        for group, yes in (
            (self.constants, self.constant(value)),
            (self.large, self.is_large(value)),
        ):
            (group.add if yes else group.discard)(name)
        tested = self.non_finite(value)
        self.masks.pop(name, None)
        if len(tested) == 1 and tested[0][1]:
            self.masks[name] = tested[0][0]


def _says_what_it_is(value: ast.expr) -> bool:
    """Whether an unknown kind means that it is none: a number, a text, a detached copy."""
    if isinstance(value, (ast.Constant, ast.JoinedStr, ast.Dict, ast.List, ast.Compare)):
        return True
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        return value.func.attr in LOST or value.func.attr in _CREATORS
    return False


def by_name(name: str) -> Kind | None:
    """What everybody calls so."""
    return next((kind for pattern, kind in _NAMES if pattern.fullmatch(name)), None)


def strongest(kinds: Iterable[Kind | None]) -> Kind | None:
    """A sum of a loss and a number is a loss."""
    found = set(kinds)
    order: tuple[Kind, ...] = ("gradient", "loss", "activation", "weight")
    return next((kind for kind in order if kind in found), None)


def same(first: ast.AST, second: ast.AST) -> bool:
    """Whether both are written alike."""
    return dump(first).replace("Store()", "Load()") == dump(second).replace("Store()", "Load()")


def _last(function: ast.expr) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None
