"""What a function of the program's own surely returns that is no dictionary."""

from __future__ import annotations

import libcst as cst
import libcst.matchers as m

from lora_doctor.static.program.values import Function, Reference, Value

_STEPS = 10
#: Builtins and functions of libraries that return a number, a text, a list or a tuple.
_PLAIN = frozenset(
    ["float", "int", "round", "len", "sum", "min", "max", "abs", "str", "list", "tuple", "bool"]
)
_OF_NUMPY = frozenset(["mean", "sum", "average", "median", "exp", "log", "argmax", "max", "min"])
#: Methods of numbers of numpy and torch.
_METHODS = frozenset(["item", "tolist"])


def returns_no_dictionary(function: Function) -> str:
    """What every ``return`` gives: ``a number or a list``, ``nothing``; empty where one of them may
    give a dictionary."""
    node = function.node
    if isinstance(node, cst.Lambda):
        return "no dictionary" if _is_other(node.body, function, {}) else ""
    if node.decorators or node.asynchronous is not None:
        return ""
    inside = _own_nodes(node)
    if any(isinstance(one, (cst.Yield, cst.Raise)) for one in inside):
        return ""
    returns = [one for one in inside if isinstance(one, cst.Return)]
    if all(one.value is None for one in returns):
        return "nothing"
    names = _assigned_once(inside)
    given = [one.value for one in returns]
    other = all(one is not None and _is_other(one, function, names) for one in given)
    return "no dictionary" if other else ""


def _own_nodes(node: cst.FunctionDef) -> list[cst.CSTNode]:
    """All nodes of a function, without those of functions and classes inside."""
    found: list[cst.CSTNode] = []
    todo: list[cst.CSTNode] = list(node.body.children)
    while todo:
        one = todo.pop()
        found.append(one)
        if not isinstance(one, (cst.FunctionDef, cst.ClassDef, cst.Lambda)):
            todo += one.children
    return found


def _assigned_once(inside: list[cst.CSTNode]) -> dict[str, cst.BaseExpression]:
    """Names that get their value in one place."""
    found: dict[str, cst.BaseExpression] = {}
    counts: dict[str, int] = {}
    for one in inside:
        if isinstance(one, cst.Assign):
            for target in one.targets:
                if isinstance(target.target, cst.Name):
                    found[target.target.value] = one.value
        elif isinstance(one, cst.AnnAssign) and one.value and isinstance(one.target, cst.Name):
            found[one.target.value] = one.value
        if isinstance(one, (cst.AssignTarget, cst.AnnAssign, cst.AugAssign, cst.NamedExpr)):
            for name in m.findall(one.target, m.Name()):
                if isinstance(name, cst.Name):
                    counts[name.value] = counts.get(name.value, 0) + 1
        elif isinstance(one, (cst.For, cst.CompFor)):
            counts.update(
                {n.value: 2 for n in m.findall(one.target, m.Name()) if isinstance(n, cst.Name)}
            )
    return {name: value for name, value in found.items() if counts.get(name) == 1}


def _is_other(
    node: cst.BaseExpression,
    function: Function,
    names: dict[str, cst.BaseExpression],
    depth: int = _STEPS,
) -> bool:
    """Whether an expression surely is no dictionary."""
    if not depth:
        return False
    if isinstance(node, cst.Name) and node.value in names:
        return _is_other(names[node.value], function, names, depth - 1)
    if isinstance(node, cst.BinaryOperation):
        return not isinstance(node.operator, cst.BitOr)
    if isinstance(node, cst.Call):
        return _is_other_call(node, function)
    return isinstance(
        node, (cst.BaseNumber, cst.BaseString, cst.Tuple, cst.List, cst.Comparison, cst.ListComp)
    ) or (isinstance(node, cst.Name) and node.value == "None")


def _is_other_call(node: cst.Call, function: Function) -> bool:
    callee = node.func
    if isinstance(callee, cst.Name):
        found = function.scope.find(callee.value)
        if found is None:
            return callee.value in _PLAIN
        return isinstance(found, Reference) and _is_score(found.name)
    if not isinstance(callee, cst.Attribute):
        return False
    name = callee.attr.value
    owner: Value | None = None
    if isinstance(callee.value, cst.Name):
        owner = function.scope.find(callee.value.value)
    if isinstance(owner, Reference):
        return (owner.name == "numpy" and name in _OF_NUMPY) or _is_score(f"{owner.name}.{name}")
    compared = isinstance(callee.value, cst.Comparison) and name in _OF_NUMPY
    return compared or name in _METHODS


def _is_score(dotted: str) -> bool:
    """``sklearn.metrics.accuracy_score`` and the like return numbers."""
    return dotted.startswith("sklearn.metrics.") and dotted.endswith("_score")
