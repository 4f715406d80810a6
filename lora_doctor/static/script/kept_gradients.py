"""Training loops whose gradients are never reset, or are reset before each micro-batch: read with
``ast``, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lora_doctor.static.python_source import last_name, short_text, unparse, walk

_LOOPS = (ast.For, ast.While, ast.AsyncFor)


#: What resets gradients, in whatever way.
_RESETS = re.compile(r"zero_grad|\.grad\b|\bgrads?\.")
#: What makes a model anew, whose weights have no gradients.
_MAKES = ("get_peft_model", "from_pretrained", "from_config", "deepcopy")


@dataclass(frozen=True)
class NeverReset:
    """A loop that steps, in a file in which nothing resets gradients."""

    #: Line and text of ``backward()``.
    line: int
    code: str
    #: Line and text of the optimizer's ``step()``.
    step_line: int
    step_code: str


@dataclass(frozen=True)
class Discarded:
    """Gradients of earlier micro-batches that are reset before the optimizer uses them."""

    #: Line and text of ``zero_grad()``.
    line: int
    code: str
    #: Line and text of what accumulates: the condition of the step, or ``accumulate()``.
    since_line: int
    since_code: str
    #: What is reset, such as ``optimizer``, in small letters.
    owner: str
    #: Whether it is accumulated by ``accumulate()`` of accelerate, which has the number of
    #: micro-batches.
    by_accelerate: bool = False


def never_reset(tree: ast.Module, text: str, libraries: frozenset[str]) -> Iterator[NeverReset]:
    """Loops that call ``loss.backward()`` and ``step()`` of an optimizer by name.

    Args:
        tree, text: a file; nothing is found where it, or a function of its own that is imported
            from a file beside it, may reset gradients.
        libraries: the packages that the program imports and that are no files of its own.
    """
    if _RESETS.search(text) is not None:
        return
    own = {
        alias.asname or alias.name.partition(".")[0]
        for node in walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        if _module(node, alias) not in libraries
    }
    functions = {node.name: node for node in walk(tree) if isinstance(node, ast.FunctionDef)}
    for loop in walk(tree):
        if not isinstance(loop, _LOOPS):
            continue
        calls = _calls(loop, functions)
        if any(last_name(call.func) in _MAKES or _first_part(call.func) in own for call in calls):
            continue
        steps = [call for call in calls if is_step(call)]
        backward = [call for call in calls if _is_backward(call)]
        if steps and backward:
            first, step = backward[0], steps[0]
            yield NeverReset(first.lineno, short_text(first), step.lineno, short_text(step))
            return


def discarded(tree: ast.Module) -> Iterator[Discarded]:
    """``zero_grad()`` before each ``backward()`` of a loop that takes a step only now and then."""
    ones = _ones(tree)
    for node in walk(tree):
        if isinstance(node, ast.With):
            yield from _in_accumulate(node)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            yield from _in_loop(node, ones)


def is_step(call: ast.Call) -> bool:
    """``optimizer.step()``, also of a ``GradScaler``; not of a scheduler or a progress bar."""
    if last_name(call.func) != "step" or not isinstance(call.func, ast.Attribute):
        return False
    owner = _last_part(call.func.value)
    given = [_last_part(one) for one in call.args]
    if call.keywords:
        return False
    return (_is_optimizer(owner) and not given) or (
        "scaler" in owner and any(map(_is_optimizer, given))
    )


def _calls(loop: ast.AST, functions: Mapping[str, ast.FunctionDef]) -> list[ast.Call]:
    """The calls of a loop, with those of the functions of the same file that it calls by name."""
    found = [node for node in walk(loop) if isinstance(node, ast.Call)]
    followed: set[str] = set()
    for call in found:  # which grows
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name in functions and name not in followed:
            followed.add(name)
            found += [node for node in walk(functions[name]) if isinstance(node, ast.Call)]
    return found


def _in_accumulate(node: ast.With) -> Iterator[Discarded]:
    """In a block of accelerate, which skips ``zero_grad()`` and ``step()`` until the last
    micro-batch: there it resets what the others have added."""
    around = [item.context_expr for item in node.items]
    entered = [one for one in around
               if isinstance(one, ast.Call) and last_name(one.func) == "accumulate"]  # fmt: skip
    if entered and "accelerator" in unparse(entered[0].func).lower():
        for found in _first_resets(node.body, entered[0]):
            yield replace(found, by_accelerate=True)


def _in_loop(loop: ast.For | ast.AsyncFor, ones: frozenset[str]) -> Iterator[Discarded]:
    """In a loop whose step stands under ``if (i + 1) % steps == 0``."""
    for node in loop.body:
        if not isinstance(node, ast.If) or not _is_now_and_then(node.test, ones):
            continue
        steps = [step for one in node.body for step in _steps(one)]
        before = loop.body[: loop.body.index(node)]
        if not steps or any(_steps(one) for one in (*before, *node.orelse)):
            continue  # another step takes the gradients of some micro-batches
        for found in _first_resets(before, node.test):
            if any(_belongs(found.owner, step) for step in steps):
                yield found


def _steps(node: ast.AST) -> list[ast.Call]:
    return [one for one in walk(node) if isinstance(one, ast.Call) and is_step(one)]


def _belongs(owner: str, step: ast.Call) -> bool:
    """Whether what is reset can be what a step changes: another optimizer's weights are not."""
    if not _is_optimizer(owner):
        return True  # of a model, whose weights any optimizer may have
    assert isinstance(step.func, ast.Attribute)
    return owner in {_last_part(one) for one in (step.func.value, *step.args)}


def _first_resets(body: Sequence[ast.stmt], since: ast.expr) -> Iterator[Discarded]:
    """``zero_grad()`` as a statement of its own, before the ``backward()`` of the same block."""
    reset: ast.Call | None = None
    for node in body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and last_name(call.func) == "zero_grad":
            reset = call
        elif reset is not None and any(
            isinstance(one, ast.Call) and _is_backward(one) for one in walk(node)
        ):
            owner = _last_part(reset.func.value) if isinstance(reset.func, ast.Attribute) else ""
            yield Discarded(reset.lineno, short_text(reset), since.lineno, short_text(since), owner)
            return


def _is_now_and_then(test: ast.expr, ones: frozenset[str]) -> bool:
    """``(i + 1) % accumulation_steps == 0``, also beside other conditions; 1 is no such number."""
    return any(
        isinstance(one, ast.BinOp)
        and isinstance(one.op, ast.Mod)
        and not (isinstance(one.right, ast.Constant) and one.right.value == 1)
        and unparse(one.right) not in ones
        for one in walk(test)
    )


def _ones(tree: ast.Module) -> frozenset[str]:
    """Names that are set to 1."""
    return frozenset(
        unparse(target)
        for node in walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and node.value.value == 1
        for target in node.targets
    )


def _is_backward(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "backward"


def _module(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    """The package that a name is imported from; empty for a file beside this one."""
    if isinstance(node, ast.ImportFrom):
        return "" if node.level else (node.module or "").partition(".")[0]
    return alias.name.partition(".")[0]


def _first_part(node: ast.expr) -> str:
    """``utils`` of ``utils.train.step``."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _last_part(node: ast.expr) -> str:
    """``optimizer`` of ``self.optimizer`` and ``optimizers["a"]``, in small letters."""
    if isinstance(node, ast.Subscript):
        node = node.value
    return last_name(node).lower()


def _is_optimizer(name: str) -> bool:
    return name.startswith("opt") or name.endswith(("optimizer", "optim", "opt"))
