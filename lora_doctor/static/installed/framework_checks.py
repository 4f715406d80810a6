"""What a framework refuses, read off its own checks: ``if self.a and not self.b: raise ...``.

The functions in which a framework checks its arguments are read with ``ast`` and not run. A check
counts where all of its condition is about arguments and constants; one about an argument that the
framework itself changes before is left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: An operation with its operands: the name of an argument first, then constants; for ``and``,
#: ``or`` and ``not`` other conditions.
Condition = list[Any]

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False, "none": None, "null": None, "": None}
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda one, other: one == other,
    "!=": lambda one, other: one != other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
    "in": lambda one, other: one in other,
    "not in": lambda one, other: one not in other,
}
_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.In: "in", ast.NotIn: "not in", ast.Is: "==", ast.IsNot: "!=",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that a framework refuses."""

    condition: Condition
    #: What it raises: ``ValueError: ...``.
    message: str
    #: Where: ``hparams/parser.py: get_train_args``.
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments that it looks at, in their order."""
        return tuple(dict.fromkeys(_names(self.condition)))

    def applies(self, entries: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
        """Whether it refuses these entries. Not where a default is not known."""
        try:
            return bool(_holds(self.condition, entries, defaults))
        except (KeyError, TypeError):
            return False

    def to_json(self) -> dict[str, Any]:
        return {"condition": self.condition, "message": self.message, "source": self.source}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Check:
        return cls(data["condition"], data["message"], data["source"])


def _names(condition: Condition) -> Iterator[str]:
    operation, *operands = condition
    if operation in ("and", "or", "not"):
        for operand in operands:
            yield from _names(operand)
    else:
        yield operands[0]


def _holds(condition: Condition, entries: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    operation, *operands = condition
    if operation == "and":
        return all(_holds(one, entries, defaults) for one in operands)
    if operation == "or":
        return any(_holds(one, entries, defaults) for one in operands)
    if operation == "not":
        return not _holds(operands[0], entries, defaults)
    if operation == "has":
        return operands[0] in entries
    name = operands[0]
    # Without an entry: the default in the check's own words, else that of the class.
    default = operands[-1] if operation.startswith("get ") else None
    if name in entries:
        value = _plain(entries[name])
    elif operation.startswith("get "):
        value = default
    else:
        value = defaults[name]
    operation = operation.removeprefix("get ")
    return bool(value) if operation == "is" else _COMPARED[operation](value, operands[1])


def _plain(value: Any) -> Any:
    """The value of an entry, of a command line as its parser makes it."""
    if not isinstance(value, str):
        return value
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    return float(value) if _NUMBER.fullmatch(value) else value


@dataclass
class Reader:
    """Reads the checks of functions that look at the same arguments."""

    #: Every argument that there is.
    names: frozenset[str]
    found: list[Check] = field(default_factory=list)
    #: Arguments that the functions change.
    changed: set[str] = field(default_factory=set)

    def read(self, function: ast.FunctionDef, file: str) -> None:
        """One function: of a class with ``self``, with a mapping as its last argument
        (``def check(cls, data)``), or with objects that hold arguments (``model_args``)."""
        given = [one.arg for one in function.args.args]
        _Function(self, given, f"{file}: {function.name}").block(function.body, [])

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(one for one in self.found if not self.changed.intersection(one.names))


class _Function:
    """The statements of one function."""

    def __init__(self, reader: Reader, given: Sequence[str], source: str) -> None:
        self.reader = reader
        self.data = given[-1] if given and given[-1] in ("data", "values") else ""
        self.source = source

    def block(self, statements: Iterable[ast.stmt], held: list[Condition | None]) -> None:
        """``held``: the conditions under which these statements are run; ``None`` for one that
        cannot be told."""
        held = list(held)
        for statement in statements:
            if isinstance(statement, ast.If):
                condition = self.condition(statement.test)
                self.block(statement.body, [*held, condition])
                self.block(statement.orelse, [*held, _negated(condition)])
                if any(isinstance(one, ast.Return) for one in ast.walk(statement)):
                    ends = isinstance(statement.body[-1], ast.Return) and not statement.orelse
                    held.append(_negated(condition) if ends else None)
            elif isinstance(statement, ast.Raise):
                self._raised(statement, held)
                return
            else:
                self._changes(statement)
                for inner in ast.walk(statement):
                    if isinstance(inner, ast.If):  # in a loop, a with, a try: changes only
                        self.block(inner.body, [None])

    def _raised(self, statement: ast.Raise, held: list[Condition | None]) -> None:
        raised = statement.exc
        if None in held or not isinstance(raised, ast.Call) or not raised.args:
            return
        message = _text(raised.args[0])
        conditions = [one for one in held if one]
        if message and conditions and isinstance(raised.func, ast.Name):
            whole = conditions[0] if len(conditions) == 1 else ["and", *conditions]
            self.reader.found.append(Check(whole, f"{raised.func.id}: {message}", self.source))

    def _changes(self, statement: ast.stmt) -> None:
        for node in ast.walk(statement):
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Delete)):
                targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else [
                    node.target]  # fmt: skip
                self.reader.changed.update(
                    name for one in targets if (name := self._argument(one)) is not None
                )
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                named = node.args[0] if node.args else None
                if node.func.attr in ("pop", "setdefault") and isinstance(named, ast.Constant):
                    self.reader.changed.add(str(named.value))

    def _argument(self, node: ast.expr) -> str | None:
        """The argument that ``self.NAME``, ``model_args.NAME`` or ``data["NAME"]`` is."""
        name: Any = None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of_arguments = node.value.id == "self" or node.value.id.endswith("_args")
            name = node.attr if of_arguments and not self.data else None
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            ours = isinstance(node.value, ast.Name) and node.value.id == self.data
            name = node.slice.value if ours else None
        return name if isinstance(name, str) and name in self.reader.names else None

    def condition(self, node: ast.expr) -> Condition | None:
        if isinstance(node, ast.BoolOp):
            parts = [self.condition(one) for one in node.values]
            joined = "and" if isinstance(node.op, ast.And) else "or"
            return None if None in parts else [joined, *parts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _negated(self.condition(node.operand))
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._compared(node.left, node.ops[0], node.comparators[0])
        return self._asked(node, "is")

    def _compared(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Condition | None:
        operation = _OPERATORS.get(type(operator))
        if isinstance(left, ast.Constant) and isinstance(right, ast.Name):
            known = right.id == self.data and left.value in self.reader.names
            has: Condition = ["has", left.value]
            in_it = {"in": has, "not in": ["not", has]}
            return in_it.get(operation or "") if known else None
        try:
            value = ast.literal_eval(right)
        except (ValueError, TypeError, SyntaxError, RecursionError):
            return None
        value = list(value) if isinstance(value, (tuple, set)) else value
        return self._asked(left, operation, value) if operation else None

    def _asked(self, node: ast.expr, operation: str, *operands: Any) -> Condition | None:
        """The operation on an argument: on what the class makes of it, or on an entry."""
        name = None if self.data else self._argument(node)
        if name is not None:
            return [operation, name, *operands]
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == self.data
        ):
            return None
        try:
            key, *default = [ast.literal_eval(one) for one in node.args]
        except (ValueError, TypeError, SyntaxError, RecursionError):
            return None
        if key not in self.reader.names:
            return None
        return [f"get {operation}", key, *operands, default[0] if default else None]


def _negated(condition: Condition | None) -> Condition | None:
    return None if condition is None else ["not", condition]


def _text(node: ast.expr) -> str:
    """The text of a message; what is filled in later is left open."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "..." for part in
                       node.values)  # fmt: skip
    return ""
