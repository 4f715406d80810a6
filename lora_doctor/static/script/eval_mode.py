"""Where a training loop leaves its model in evaluation mode after the first evaluation: read with
``ast``, never run."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from lora_doctor.static.python_source import unparse, walk
from lora_doctor.static.script.training_loop import last_name, short_text

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


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
    functions = {node.name: node for node in walk(tree) if isinstance(node, _FUNCTIONS)}
    for loop in walk(tree):
        if isinstance(loop, (ast.For, ast.While)):
            found = _in_loop(loop, functions)  # type: ignore[arg-type]
            if found is not None:
                return found
    return None


def _in_loop(loop: ast.For | ast.While, functions: dict[str, ast.FunctionDef]) -> LeftInEval | None:
    calls = [node for node in walk(loop) if isinstance(node, ast.Call)]
    names = {last_name(call.func) for call in calls}
    called = [functions[name] for name in names if name in functions]
    inside = [node for one in called for node in walk(one) if isinstance(node, ast.Call)]
    every = {last_name(call.func) for call in (*calls, *inside)}
    if "train" in every or "backward" not in names:
        return None
    models = {unparse(call.func) for call in calls if call.keywords or call.args}
    for call in calls:
        if _is_eval(call) and _owner(call) in models:
            return LeftInEval(call.lineno, short_text(call), call.lineno, short_text(call))
        function = functions.get(call.func.id) if isinstance(call.func, ast.Name) else None
        evaluated = _evaluates(call, function) if function is not None else None
        if evaluated is not None and evaluated[0] in models:
            own = evaluated[1]
            return LeftInEval(call.lineno, short_text(call), own.lineno, short_text(own))
    return None


def _evaluates(call: ast.Call, function: ast.FunctionDef) -> tuple[str, ast.Call] | None:
    """What a function that a loop calls puts into evaluation mode, by the loop's name for it."""
    parameters = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    given = {name: unparse(one) for name, one in zip(parameters, call.args, strict=False)}
    given.update({one.arg: unparse(one.value) for one in call.keywords if one.arg})
    for node in walk(function):
        if isinstance(node, ast.Call) and _is_eval(node):
            owner = _owner(node)
            return (given.get(owner, "") if owner in parameters else owner), node
    return None


def _is_eval(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "eval" and not call.args


def _owner(call: ast.Call) -> str:
    return unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
