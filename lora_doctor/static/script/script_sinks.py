"""Which values of a function reach its training, as far as the source tells."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from lora_doctor.limits import step
from lora_doctor.static.script.script_values import LOST, Kind


class Sinks:
    """Which names of a function reach its training: a backward, what it returns, a gradient."""

    def __init__(self, own: list[ast.AST], *, returns: bool) -> None:
        backward: set[str] = set()
        returned: set[str] = set()
        gradients: set[str] = set()
        pairs: list[tuple[str, ast.expr]] = []
        self.last_backward = 0
        for node in own:
            if is_backward(node):
                backward |= read_in(node)
                self.last_backward = max(self.last_backward, getattr(node, "lineno", 0))
            elif isinstance(node, (ast.Return, ast.keyword)):
                says_loss = node.arg == "loss" if isinstance(node, ast.keyword) else returns
                if says_loss and node.value is not None:
                    returned |= read_in(node.value)
            elif isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
                if node.value is None:
                    continue
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if root_attribute(target) == "grad":
                        gradients |= read_in(node.value)
                    pairs += [(key, node.value) for key in written(target)]
            elif is_append(node):
                pairs += [(key, node.args[0]) for key in read_in(node.func.value)]  # type: ignore[attr-defined]
        self.before_backward = closed(backward, pairs)
        self.returned = closed(returned, pairs)
        self.gradients = closed(gradients, pairs) | self.returned

    def takes(self, target: ast.expr, kind: Kind) -> bool:
        """Whether what is put into ``target``, where it stands, goes on into the training."""
        if kind == "weight":
            return True
        names = read_in(target)
        if kind == "gradient":
            return root_attribute(target) == "grad" or bool(names & self.gradients)
        # After the last backward a loss is only looked at.
        in_time = target.lineno <= self.last_backward
        return bool(names & self.returned) or (in_time and bool(names & self.before_backward))


def closed(found: set[str], pairs: list[tuple[str, ast.expr]]) -> set[str]:
    """With the names from which those in ``found`` are computed."""
    by_key: dict[str, list[ast.expr]] = {}
    for key, value in pairs:
        by_key.setdefault(key, []).append(value)
    found = set(found)
    todo = list(found)
    while todo:
        for value in by_key.pop(todo.pop(), ()):
            more = read_in(value) - found
            found |= more
            todo.extend(more)
    return found


def read_in(node: ast.AST) -> set[str]:
    """Names (``loss``, ``self.loss``) whose value is used in an expression, logs left out."""
    found: set[str] = set()
    stack = [node]
    while stack:
        step()
        item = stack.pop()
        if isinstance(item, ast.Name):
            found.add(item.id)
        elif isinstance(item, ast.Attribute) and (name := dotted(item)):
            found.add(name)
            if not name.startswith("self."):
                stack.append(item.value)
        elif isinstance(item, ast.Call) and is_lost(item):
            continue
        else:
            stack += list(ast.iter_child_nodes(item))
    return found


def is_lost(node: ast.Call) -> bool:
    """A call after which the value trains nothing: ``loss.item()``. A backward is no such call."""
    return isinstance(node.func, ast.Attribute) and node.func.attr in LOST - {
        "backward",
        "softmax",
        "sigmoid",
        "topk",
        "bool",
        "float",
    }


def written(target: ast.expr) -> set[str]:
    if isinstance(target, (ast.Tuple, ast.List)):
        return {name for item in target.elts for name in written(item)}
    if isinstance(target, ast.Subscript):
        return written(target.value)
    if isinstance(target, ast.Starred):
        return written(target.value)
    return read_in(target)


def dotted(node: ast.Attribute) -> str:
    parts = [node.attr]
    inner: ast.expr = node.value
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    step(len(parts))
    return ".".join([inner.id, *reversed(parts)]) if isinstance(inner, ast.Name) else ""


def root_attribute(node: ast.expr) -> str:
    """``grad`` for ``p.grad``, ``p.grad.data`` and ``p.grad[0]``."""
    while True:
        if isinstance(node, ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Attribute):
            if node.attr != "data":
                return node.attr
            node = node.value
        else:
            return ""


def is_backward(node: ast.AST) -> bool:
    """``loss.backward()``, ``accelerator.backward(loss)``, ``self.manual_backward(loss)``."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("backward", "manual_backward")
    )


def is_copy_to(node: ast.AST) -> bool:
    """``p.grad.copy_(value)`` and ``hook(value)`` are uses; printing is none."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("copy_", "register_hook")
    )


def is_append(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "append"
        and len(node.args) == 1
    )


def own_nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes of a function but those of functions and classes in it."""
    stack: list[ast.AST] = list(body)
    while stack:
        step()
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        yield node
        stack += list(ast.iter_child_nodes(node))
