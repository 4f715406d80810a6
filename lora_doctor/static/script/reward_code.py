"""What the code of a reward function says of itself: read with ``ast``, never run."""

from __future__ import annotations

import ast

from lora_doctor.static.python_source import short_text, walk

#: What trainers hand a reward function of what the model has written.
_WRITTEN = ("completions", "completion_ids")

#: How often names are looked for that are set to names found before.
_ROUNDS = 20

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
    it grows the farther a completion is from what is meant. Empty where it is none, or not known,
    and where it is the distance between completions, which is large if they differ.
    """
    each = _each_reward(node)
    if isinstance(each, ast.Call) and getattr(each.func, "id", "") == "float" and each.args:
        each = each.args[0]
    difference = _difference(each) if each is not None else None
    if each is None or difference is None:
        return ""
    made = _made_of_written(node)
    among = all(_names(side) & made for side in (difference.left, difference.right))
    return "" if among else short_text(each)


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


def _difference(node: ast.expr) -> ast.BinOp | None:
    """``a - b`` of ``abs(a - b)`` and ``(a - b) ** 2``."""
    inner: ast.expr | None = None
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "abs" and len(node.args) == 1:
        inner = node.args[0]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        squared = isinstance(node.right, ast.Constant) and node.right.value == 2
        inner = node.left if squared else None
    is_difference = isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub)
    return inner if is_difference and isinstance(inner, ast.BinOp) else None


def _made_of_written(node: RewardCode) -> set[str]:
    """Names that hold what the model has written, or something that was computed of it."""
    found = set(_WRITTEN)
    inside = _inside(node)
    for _ in range(_ROUNDS):
        before = len(found)
        for one in inside:
            for source, target in _set(one):
                if _names(source) & found:
                    found |= _names(target)
        if len(found) == before:
            break
    return found


def _set(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """What a statement or loop sets, and what it sets it to."""
    if isinstance(node, (ast.For, ast.comprehension)):
        return list(zip(*reversed(_over(node)), strict=False))
    if isinstance(node, ast.Assign):
        return [(node.value, target) for target in node.targets]
    if isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
        return [(node.value, node.target)]
    return []


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in walk(node) if isinstance(one, ast.Name)}


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
    targets, sources = _over(node)
    found = set()
    for name, variable in zip(sources, targets, strict=False):
        unread = isinstance(variable, ast.Name) and not _is_read(variable.id, inside)
        if isinstance(name, ast.Name) and name.id in held and unread:
            found.add(id(name))
    return found


def _over(node: ast.For | ast.comprehension) -> tuple[list[ast.expr], list[ast.expr]]:
    """The variables of a loop and what each goes over; ``zip`` and ``enumerate`` taken apart."""
    source, target = node.iter, node.target
    if isinstance(source, ast.Call) and isinstance(source.func, ast.Name):
        if source.func.id == "enumerate" and isinstance(target, ast.Tuple) and source.args:
            return target.elts[1:], source.args[:1]
        if source.func.id == "zip" and isinstance(target, ast.Tuple):
            return target.elts, source.args
    return [target], [source]


def _is_read(name: str, inside: list[ast.AST]) -> bool:
    return any(
        isinstance(one, ast.Name) and one.id == name and isinstance(one.ctx, ast.Load)
        for one in inside
    )
