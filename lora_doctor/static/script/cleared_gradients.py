"""Where a training loop clears its gradients before the optimizer uses them: read, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_doctor.static.python_source import last_name, short_text, unparse, walk

#: What may stand between ``zero_grad()`` and ``step()`` without computing a gradient.
_HARMLESS = re.compile(
    r"clip_grad_(?:norm|value)_|unscale_|print|log\w*|info|debug|append|item|detach|cpu"
    r"|set_postfix|set_description|format|write|add_scalar|parameters|get_last_lr|float|len|str"
    r"|round|time|perf_counter|synchronize|empty_cache|wait_for_everyone"
)
#: The same of a scheduler, a scaler or a progress bar, which are given no batch.
_HARMLESS_ALONE = ("step", "update")


@dataclass(frozen=True)
class Cleared:
    """``zero_grad()`` right before ``step()``."""

    line: int
    code: str
    step_line: int
    step_code: str


def cleared_gradients(tree: ast.Module) -> Iterator[Cleared]:
    """Each ``zero_grad()`` that is followed by ``step()`` of the same optimizer in its block, with
    nothing between that may compute a gradient, where that is the optimizer's only step."""
    steps: dict[str, int] = {}
    for node in walk(tree):
        if isinstance(node, ast.Call) and last_name(node.func) == "step":
            owner = _owner(node)
            steps[owner] = steps.get(owner, 0) + 1
    for node in walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield from _in_block(block, steps)


def _in_block(block: Sequence[ast.stmt], steps: dict[str, int]) -> Iterator[Cleared]:
    zeroed: dict[str, ast.Call] = {}
    for node in block:
        call = node.value if isinstance(node, ast.Expr) else None
        if not isinstance(call, ast.Call):
            call = None
        last, owner = (last_name(call.func), _owner(call)) if call is not None else ("", "")
        if call is not None and last == "zero_grad":
            zeroed[owner] = call
        elif call is not None and last == "step" and owner in zeroed:
            if not call.args and not call.keywords and steps.get(owner) == 1:
                before = zeroed[owner]
                yield Cleared(before.lineno, short_text(before), call.lineno, short_text(call))
            zeroed.clear()
        elif any(map(_may_set_gradients, walk(node))):
            zeroed.clear()


def _may_set_gradients(node: ast.AST) -> bool:
    """Whether it may compute gradients, or writes them: ``p.grad = saved``."""
    if isinstance(node, ast.Attribute):
        return node.attr == "grad" and isinstance(node.ctx, ast.Store)
    if not isinstance(node, ast.Call):
        return False
    name = last_name(node.func)
    if name in _HARMLESS_ALONE:
        return not all(isinstance(one, ast.Constant) for one in node.args) or bool(node.keywords)
    return _HARMLESS.fullmatch(name) is None


def _owner(call: ast.Call) -> str:
    """``self.optimizer`` of ``self.optimizer.step()``."""
    return unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
