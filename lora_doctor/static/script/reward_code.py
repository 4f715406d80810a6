"""What the code of a reward function says of itself: read with ``ast``, never run."""

from __future__ import annotations

import ast

from lora_doctor.static.python_source import short_text, walk

#: What trainers hand a reward function of what the model has written.
_WRITTEN = ("completions", "completion_ids")

RewardCode = ast.FunctionDef | ast.Lambda


def reads_written(node: RewardCode) -> bool:
    """Whether a reward function reads what the model has written. To count the completions is not
    reading them."""
    given = node.args
    names = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
    held = names.intersection(_WRITTEN)
    rest = {one.arg for one in (given.vararg, given.kwarg) if one is not None}
    inside = _inside(node)
    if any(isinstance(one, ast.Name) and one.id in rest | {"locals"} for one in inside):
        return True
    loaded = {
        id(one)
        for one in inside
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load) and one.id in held
    }
    for one in inside:
        loaded -= _order_only(one, inside, held)
    return bool(loaded)


def distance_rewarded(node: RewardCode) -> str:
    """The distance that a reward function returns as its reward, such as ``abs(20 - len(text))``:
    it grows the farther a completion is from what is meant. Empty where it is none, or not known.
    """
    each = _each_reward(node)
    if isinstance(each, ast.Call) and getattr(each.func, "id", "") == "float" and each.args:
        each = each.args[0]
    return short_text(each) if each is not None and _is_distance(each) else ""


def _each_reward(node: RewardCode) -> ast.expr | None:
    """The one expression that gives the reward of each completion: that of the list which is
    returned, or what a loop appends to it; ``None`` where there are several."""
    inside = _inside(node)
    returned = (
        [node.body]
        if isinstance(node, ast.Lambda)
        else [one.value for one in inside if isinstance(one, ast.Return)]
    )
    if len(returned) != 1:
        return None
    (given,) = returned
    if isinstance(given, ast.ListComp):
        return given.elt
    if not isinstance(given, ast.Name):
        return None
    uses = [one for one in inside if isinstance(one, ast.Name) and one.id == given.id]
    appended = [
        one.args[0]
        for one in inside
        if isinstance(one, ast.Call)
        and isinstance(one.func, ast.Attribute)
        and one.func.attr == "append"
        and getattr(one.func.value, "id", "") == given.id
        and len(one.args) == 1
    ]
    # The list is made, appended to in one place and returned: nothing else changes a reward.
    return appended[0] if len(appended) == 1 and len(uses) == 3 else None


def _is_distance(node: ast.expr) -> bool:
    """``abs(a - b)`` and ``(a - b) ** 2``."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "abs" and len(node.args) == 1:
        return _is_difference(node.args[0])
    squared = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
    if squared and isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant):
        return node.right.value == 2 and _is_difference(node.left)
    return False


def _is_difference(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)


def _inside(node: RewardCode) -> list[ast.AST]:
    body = node.body if isinstance(node.body, list) else [node.body]
    return [inner for one in body for inner in walk(one)]


def _order_only(node: ast.AST, inside: list[ast.AST], held: set[str]) -> set[int]:
    """Names in a node of which only the number of items is used: ``len(completions)``, and ``for _
    in completions`` whose variable nothing reads."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
        return {id(one) for one in node.args}
    if not isinstance(node, (ast.For, ast.comprehension)):
        return set()
    source, target = node.iter, node.target
    targets = [target]
    sources: list[ast.expr] = [source]
    if isinstance(source, ast.Call) and isinstance(source.func, ast.Name):
        if source.func.id == "enumerate" and isinstance(target, ast.Tuple) and source.args:
            targets, sources = target.elts[1:], source.args[:1]
        elif source.func.id == "zip" and isinstance(target, ast.Tuple):
            targets, sources = target.elts, source.args
    found = set()
    for name, variable in zip(sources, targets, strict=False):
        unread = isinstance(variable, ast.Name) and not _is_read(variable.id, inside)
        if isinstance(name, ast.Name) and name.id in held and unread:
            found.add(id(name))
    return found


def _is_read(name: str, inside: list[ast.AST]) -> bool:
    return any(
        isinstance(one, ast.Name) and one.id == name and isinstance(one.ctx, ast.Load)
        for one in inside
    )
