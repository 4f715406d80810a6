"""Where a training loop of the user's own loses its gradients: read with ``ast`` and never run.

Followed is what each name stands for, statement by statement: nothing that is computed under
``torch.no_grad()``, detached or copied into a new tensor has a way back to the weights. A value of
which that is not certain counts as one that has.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_doctor.static.python_source import FUNCTIONS, last_name, short_text, walk
from lora_doctor.static.script.script_values import Names

_DETACHES = ("item", "detach", "detach_", "numpy", "tolist")
_COPIES = ("torch.tensor", "torch.as_tensor", "torch.from_numpy", "torch.FloatTensor",
           "torch.Tensor")  # fmt: skip
_NUMBERS = ("float", "int")
#: Methods of a tensor; what else is called on a value may be a model's.
_TENSOR = re.compile(
    r"mean|sum|view|reshape|squeeze|unsqueeze|to|float|half|double|bfloat16|clone|contiguous|cuda"
    r"|log|exp|log_softmax|softmax|sigmoid|pow|sqrt|abs|neg|mul|div|add|sub|transpose|permute"
    r"|flatten|gather|masked_fill|expand|repeat|max|min|clamp|index_select|select|type|type_as"
)
#: A number by its name: ``loss / gradient_accumulation_steps``.
_NUMBER = re.compile(r"(?i).*(?:accum\w*|steps|size|count|num_\w+|scale)")
#: What takes a loss for its ``backward``.
_ENGINES = re.compile(r"(?i).*(?:accelerator|fabric|engine|booster|strategy|scaler|self)")
_ITERATES = ("enumerate", "zip", "range", "iter", "tqdm", "trange", "track", "len")
_BACKWARD = ("backward", "manual_backward")
#: Methods by which a trainer of a library is handed the loss.
_GIVES_LOSS = ("compute_loss", "training_step")
_DATA = "data"
_LOSS = "loss function"


@dataclass(frozen=True)
class Lost:
    """Why a value has no way back to the weights."""

    #: Line of the ``with``, the decorator or the call.
    line: int
    #: Its text.
    code: str
    #: ``no_grad`` or ``detached``.
    how: str


@dataclass(frozen=True)
class LostLoss:
    """A loss without gradients that is trained on."""

    #: Line and text of ``backward()``, or of the ``return`` of the method that gives the loss.
    line: int
    code: str
    why: Lost


#: What a name stands for: a loss that lost its way, data, a function for a loss; ``None``: unknown.
_Value = Lost | str | None


def lost_losses(tree: ast.Module) -> list[LostLoss]:
    """The losses of a module that are trained on and have no way to the weights."""
    reader = _Reader(Names.of(tree))
    reader.block(tree.body, _Frame())
    return list({(one.line, one.code): one for one in reader.losses}.values())


@dataclass
class _Frame:
    """Names of a function, and the ``no_grad`` around the statement that has been reached."""

    names: dict[str, _Value] = field(default_factory=dict)
    around: Lost | None = None
    #: What is returned; empty outside of functions.
    returned: list[tuple[ast.Return, _Value]] = field(default_factory=list)


class _Reader:
    def __init__(self, names: Names) -> None:
        self.imported = names
        self.losses: list[LostLoss] = []
        #: Functions of the module whose every result has lost its way.
        self.functions: dict[str, Lost] = {}

    # --- statements ----------------------------------------------------------------------------

    def block(self, body: Sequence[ast.stmt], frame: _Frame) -> bool:
        """Whether it is left before its end."""
        return any(self._statement(node, frame) for node in body)

    def _statement(self, node: ast.stmt, frame: _Frame) -> bool:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is not None:
            return bool(method(node, frame))
        self._sinks(node, frame)
        return isinstance(node, (ast.Raise, ast.Continue, ast.Break))

    def _functiondef(self, node: ast.FunctionDef, frame: _Frame) -> None:
        inner = self._followed(node, frame)
        every = [value for _, value in inner.returned]
        if every and all(isinstance(value, Lost) for value in every):
            assert isinstance(every[0], Lost)
            self.functions[node.name] = every[0]
        else:
            self.functions.pop(node.name, None)

    _asyncfunctiondef = _functiondef

    def _followed(self, node: ast.FunctionDef, frame: _Frame) -> _Frame:
        known: dict[str, _Value] = {
            name: value for name, value in frame.names.items() if value == _LOSS
        }
        inner = _Frame(known)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            inner.names.pop(argument.arg, None)
        for decorator in node.decorator_list:
            inner.around = self._entered(decorator, inner.around)
        self.block(node.body, inner)
        return inner

    def _classdef(self, node: ast.ClassDef, frame: _Frame) -> None:
        goes_back = _goes_back(node)
        for method in node.body:
            if not isinstance(method, FUNCTIONS):
                continue
            inner = self._followed(method, frame)  # type: ignore[arg-type]
            if method.name not in _GIVES_LOSS or not node.bases or goes_back:
                continue
            for given, value in inner.returned:
                if isinstance(value, Lost):
                    self._found(given, value)

    def _return(self, node: ast.Return, frame: _Frame) -> bool:
        self._sinks(node, frame)
        value = node.value
        if isinstance(value, ast.IfExp):  # (loss, outputs) if return_outputs else loss
            value = value.orelse
        if isinstance(value, ast.Tuple) and value.elts:
            value = value.elts[0]
        if isinstance(value, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in value.keys]
            value = value.values[keys.index("loss")] if "loss" in keys else None
        frame.returned.append((node, self.value(value, frame) if value is not None else None))
        return True

    def _assign(self, node: ast.Assign, frame: _Frame) -> None:
        self._sinks(node, frame)
        value = self.value(node.value, frame)
        for target in node.targets:
            self._bind(target, value, node.value, frame)

    def _annassign(self, node: ast.AnnAssign, frame: _Frame) -> None:
        if node.value is not None:
            self._bind(node.target, self.value(node.value, frame), node.value, frame)

    def _augassign(self, node: ast.AugAssign, frame: _Frame) -> None:
        both = [self.value(node.target, frame), self.value(node.value, frame)]
        self._bind(node.target, _joined(both), node.value, frame)

    def _bind(self, target: ast.expr, value: _Value, given: ast.expr, frame: _Frame) -> None:
        if isinstance(target, ast.Name):
            frame.names[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = given.elts if isinstance(given, ast.Tuple) else None
            for number, element in enumerate(target.elts):
                one = parts[number] if parts and len(parts) == len(target.elts) else None
                own = self.value(one, frame) if one is not None else value
                self._bind(element, own, given, frame)
        elif isinstance(target, ast.Starred):
            self._bind(target.value, value, given, frame)
        elif isinstance(target, (ast.Attribute, ast.Subscript)):
            owner = target.value
            if isinstance(owner, ast.Name) and frame.names.get(owner.id) != value:
                frame.names[owner.id] = None

    def _if(self, node: ast.If, frame: _Frame) -> bool:
        return self._branches(node.body, node.orelse, frame)

    def _branches(
        self, first: Sequence[ast.stmt], second: Sequence[ast.stmt], frame: _Frame
    ) -> bool:
        before, around = dict(frame.names), frame.around
        left_first = self.block(first, frame)
        after_first, frame.names, frame.around = frame.names, before, around
        left_second = self.block(second, frame)
        if left_second and not left_first:
            frame.names = after_first
        elif not left_first:
            frame.names = _met(after_first, frame.names)
        return left_first and left_second

    def _for(self, node: ast.For, frame: _Frame) -> None:
        self._forget(node.body, frame)
        data = _DATA if self._is_data(node.iter) else None
        for target in walk(node.target):
            if isinstance(target, ast.Name):
                frame.names[target.id] = data
        self._once(node.body, frame)

    _asyncfor = _for

    def _while(self, node: ast.While, frame: _Frame) -> None:
        self._forget(node.body, frame)
        self._once(node.body, frame)

    def _once(self, body: Sequence[ast.stmt], frame: _Frame) -> None:
        before = dict(frame.names)
        self.block(body, frame)
        frame.names = _met(before, frame.names)

    def _forget(self, body: Sequence[ast.stmt], frame: _Frame) -> None:
        """What a loop sets is another value in its next round."""
        for node in body:
            for item in walk(node):
                stored = isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)
                if stored and item.id in frame.names:  # type: ignore[attr-defined]
                    frame.names[item.id] = None  # type: ignore[attr-defined]

    def _is_data(self, node: ast.expr) -> bool:
        calls = [item for item in walk(node) if isinstance(item, ast.Call)]
        return all(last_name(call.func) in _ITERATES for call in calls)

    def _with(self, node: ast.With, frame: _Frame) -> bool:
        kept = frame.around
        for item in node.items:
            frame.around = self._entered(item.context_expr, frame.around)
        left = self.block(node.body, frame)
        frame.around = kept
        return left

    _asyncwith = _with

    def _entered(self, node: ast.expr, around: Lost | None) -> Lost | None:
        """The ``no_grad`` in force inside of a context manager or under a decorator."""
        call = node if isinstance(node, ast.Call) else None
        name = self.imported.numeric(call.func if call is not None else node)
        given = [] if call is None else [*call.args, *(one.value for one in call.keywords)]
        lost = Lost(node.lineno, short_text(node), "no_grad")
        if name in ("no_grad", "inference_mode"):
            return None if given else lost
        if name == "set_grad_enabled":
            return lost if _is_false(given) else None
        return None if name == "enable_grad" else around

    def _expr(self, node: ast.Expr, frame: _Frame) -> None:
        self._sinks(node, frame)
        call = node.value
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return
        if self.imported.numeric(call.func) == "set_grad_enabled":
            frame.around = self._entered(call, frame.around)
        elif call.func.attr.startswith("requires_grad_") and isinstance(call.func.value, ast.Name):
            # A leaf of its own, as gradient caching makes it.
            frame.names[call.func.value.id] = None

    def _try(self, node: ast.Try, frame: _Frame) -> bool:
        before = dict(frame.names)
        left = self.block([*node.body, *node.orelse], frame)
        after = frame.names
        for handler in node.handlers:
            frame.names = dict(before)
            if not self.block(handler.body, frame):
                after = _met(after, frame.names)
        frame.names = after
        return self.block(node.finalbody, frame) or (left and not node.handlers)

    # --- backward ------------------------------------------------------------------------------

    def _sinks(self, node: ast.stmt, frame: _Frame) -> None:
        for call in walk(node):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr not in _BACKWARD:
                continue
            value = self.value(_loss_of(call), frame)
            if isinstance(value, Lost):
                self._found(call, value)

    def _found(self, node: ast.AST, why: Lost) -> None:
        self.losses.append(LostLoss(getattr(node, "lineno", 0), short_text(node), why))

    # --- values --------------------------------------------------------------------------------

    def value(self, node: ast.expr | None, frame: _Frame) -> _Value:
        """Whether an expression has lost its way to the weights; ``None`` where it may have one."""
        if isinstance(node, ast.Constant):
            return _DATA
        if isinstance(node, ast.Name):
            return frame.names.get(node.id)
        if isinstance(node, ast.Call):
            return self._call(node, frame)
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value, frame)
            return Lost(node.lineno, short_text(node), "detached") if (
                node.attr == "data" and owner != _DATA
            ) else owner  # fmt: skip
        if isinstance(node, (ast.Subscript, ast.Starred)):
            return self.value(node.value, frame)
        if isinstance(node, ast.BinOp):
            return self._operation(node, frame)
        if isinstance(node, ast.UnaryOp):
            return self.value(node.operand, frame)
        if isinstance(node, (ast.Tuple, ast.List)):
            return _joined([self.value(one, frame) for one in node.elts])
        return self._either_way(node, frame) if isinstance(node, ast.IfExp) else None

    def _either_way(self, node: ast.IfExp, frame: _Frame) -> _Value:
        both = [self.value(node.body, frame), self.value(node.orelse, frame)]
        return both[0] if all(isinstance(one, Lost) for one in both) else None

    def _operation(self, node: ast.BinOp, frame: _Frame) -> _Value:
        left, right = self.value(node.left, frame), self.value(node.right, frame)
        if isinstance(node.op, (ast.Div, ast.Mult)) and _NUMBER.fullmatch(last_name(node.right)):
            right = right or _DATA
        return _joined([left, right])

    def _call(self, node: ast.Call, frame: _Frame) -> _Value:
        function, name = node.func, self.imported.full(node.func) or ""
        given = [self.value(one, frame) for one in node.args]
        given += [self.value(one.value, frame) for one in node.keywords]
        owner = None
        if isinstance(function, ast.Attribute) and not name:
            owner = self.value(function.value, frame)
        if any(one.arg == "requires_grad" for one in node.keywords) or "requires_grad" in last_name(
            function
        ):
            return None
        if name.startswith("torch.nn.") and name.endswith("Loss"):
            return _LOSS
        if owner == _DATA or (name.startswith("torch.") and given and set(given) == {_DATA}):
            return _DATA
        if frame.around is not None and last_name(function) != "Parameter":
            return frame.around
        return self._outside(node, name, owner, given, frame)

    def _outside(
        self, node: ast.Call, name: str, owner: _Value, given: list[_Value], frame: _Frame
    ) -> _Value:
        """A call where gradients are on."""
        function, last = node.func, last_name(node.func)
        plain = isinstance(function, ast.Name)
        if name in _COPIES or (plain and last in _NUMBERS and not name):
            return Lost(node.lineno, short_text(node), "detached") if given else _DATA
        if isinstance(function, ast.Attribute) and not name:
            if last in _DETACHES:
                return owner or Lost(node.lineno, short_text(node), "detached")
            return _joined([owner, *given]) if owner and _TENSOR.fullmatch(last) else None
        if plain and last in self.functions:
            return self.functions[last]
        is_module = name.startswith("torch.nn.") and not name.startswith("torch.nn.functional.")
        if self.value(function, frame) == _LOSS or (name.startswith("torch.") and not is_module):
            return _joined(given)
        return None


def _met(one: dict[str, _Value], other: dict[str, _Value]) -> dict[str, _Value]:
    """What is known after either of two ways."""
    return {
        name: _either(one.get(name), other.get(name)) for name in {**one, **other}
    }  # fmt: skip


def _either(one: _Value, other: _Value) -> _Value:
    if isinstance(one, Lost) and isinstance(other, Lost):
        return one
    return one if one == other else None


def _joined(values: Sequence[_Value]) -> _Value:
    """What a computation on several values has: a way to the weights where one may have it."""
    if any(value is None for value in values):
        return None
    return next((value for value in values if isinstance(value, Lost)), _DATA)


def _loss_of(call: ast.Call) -> ast.expr | None:
    """The loss of ``loss.backward()``, ``accelerator.backward(loss)``,
    ``scaler.scale(loss).backward()``."""
    if call.args:
        engine = call.func.value if isinstance(call.func, ast.Attribute) else call.func
        return call.args[0] if _ENGINES.fullmatch(last_name(engine)) else None
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if isinstance(owner, ast.Call) and last_name(owner.func) == "scale" and owner.args:
        return owner.args[0]
    return owner


def _goes_back(node: ast.ClassDef) -> bool:
    """Whether a class calls ``backward`` itself, and gives the loss to be logged."""
    calls = (item for item in walk(node) if isinstance(item, ast.Call))
    return any(last_name(call.func) in _BACKWARD for call in calls)


def _is_false(arguments: Sequence[ast.expr]) -> bool:
    first = arguments[0] if arguments else None
    return isinstance(first, ast.Constant) and first.value is False
