"""Where a training loop leaves its model in evaluation mode after the first evaluation: read with
``ast``, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.static.python_source import (
    FUNCTIONS,
    Function,
    last_name,
    short_text,
    unparse,
    walk,
)
from lora_doctor.static.script.trained_names import given_names, trained_names

#: Functions that turn training mode on: ``train``, ``for_training``, ``set_train_mode``.
_TURNS_ON = re.compile(r"train|for_training|\w*?(?:set|put|switch)\w*?train\w*|train\w*mode")
_QUIET = ("no_grad", "inference_mode")


@dataclass(frozen=True)
class LeftInEval:
    """A loop that trains, in which the model goes to evaluation mode and never back."""

    #: Line and text of what turns evaluation mode on, in the loop.
    line: int
    code: str
    #: Line and text of ``eval()`` itself.
    since_line: int
    since_code: str


def left_in_eval(tree: ast.Module) -> LeftInEval | None:
    """The first such loop of a module; ``None`` where there is none, or it is not known."""
    functions = {node.name: node for node in walk(tree) if isinstance(node, FUNCTIONS)}
    trained = trained_names(tree)
    for loop in walk(tree):
        if isinstance(loop, (ast.For, ast.While)):
            found = _in_loop(loop, functions, trained)
            if found is not None:
                return found
    return None


def _in_loop(
    loop: ast.For | ast.While, functions: dict[str, Function], trained: frozenset[str]
) -> LeftInEval | None:
    calls = [node for node in walk(loop) if isinstance(node, ast.Call)]
    names = {last_name(call.func) for call in calls}
    called = [functions[name] for name in names if name in functions]
    if "backward" not in names or any(_turns_on(one) for one in (loop, *called)):
        return None
    left, quiet = _ids(_before_the_end(loop)), _ids(_without_gradients(loop))
    calls = [call for call in calls if id(call) not in left]
    models = {unparse(call.func) for call in calls
              if (call.keywords or call.args) and id(call) not in quiet}  # fmt: skip
    models = models & trained if trained else models
    for call in calls:
        if _is_eval(call) and _owner(call) in models:
            return LeftInEval(call.lineno, short_text(call), call.lineno, short_text(call))
        function = functions.get(call.func.id) if isinstance(call.func, ast.Name) else None
        evaluated = _evaluates(call, function) if function is not None else None
        if evaluated is not None and evaluated[0] in models:
            own = evaluated[1]
            return LeftInEval(call.lineno, short_text(call), own.lineno, short_text(own))
    return None


def _turns_on(node: ast.AST) -> bool:
    """Whether training mode is turned on in it, of whatever model."""
    return any(
        (isinstance(one, ast.Call) and _TURNS_ON.fullmatch(last_name(one.func)) is not None)
        or (isinstance(one, ast.Attribute) and one.attr == "training"
            and isinstance(one.ctx, ast.Store))
        for one in walk(node)
    )  # fmt: skip


def _ids(statements: Iterator[ast.stmt]) -> set[int]:
    return {id(node) for one in statements for node in walk(one)}


def _before_the_end(loop: ast.AST) -> Iterator[ast.stmt]:
    """Statements after which the loop is left."""
    for node in walk(loop):
        if isinstance(node, ast.If) and isinstance(node.body[-1], (ast.Break, ast.Return)):
            yield from node.body


def _without_gradients(loop: ast.AST) -> Iterator[ast.stmt]:
    """Statements under ``torch.no_grad()``: a model that is only called there is not trained."""
    for node in walk(loop):
        calls = [item.context_expr for item in node.items] if isinstance(node, ast.With) else []
        if any(isinstance(one, ast.Call) and last_name(one.func) in _QUIET for one in calls):
            yield from node.body  # type: ignore[attr-defined]


def _evaluates(call: ast.Call, function: Function) -> tuple[str, ast.Call] | None:
    """What a function that a loop calls puts into evaluation mode, by the loop's name for it."""
    parameters = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    given = given_names(call, function)
    for node in walk(function):
        if isinstance(node, ast.Call) and _is_eval(node):
            owner = _owner(node)
            return (given.get(owner, "") if owner in parameters else owner), node
    return None


def _is_eval(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "eval" and not call.args


def _owner(call: ast.Call) -> str:
    return unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
