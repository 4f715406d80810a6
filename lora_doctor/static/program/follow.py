"""Follows the user's program from top to bottom, without running it: names, functions, calls.

A branch whose condition is not known is followed on both sides; what the two leave different is
not known afterwards, and the calls in them are not certain. A loop is followed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import libcst as cst

from lora_doctor.limits import step
from lora_doctor.static.installed.installed_names import importable
from lora_doctor.static.program.expressions import Expressions, truth
from lora_doctor.static.program.known_calls import known_call
from lora_doctor.static.program.objects import attribute, call_object, library_base, make_class
from lora_doctor.static.program.siblings import sibling
from lora_doctor.static.program.values import (
    Argument,
    Call,
    Class,
    Function,
    Instance,
    Items,
    Known,
    Mapping,
    ModuleValue,
    Reference,
    Scope,
    Span,
    Thing,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_doctor.static.program.units import Unit

_DEEPEST_CALL = 12
_MAKERS = ("from_pretrained", "from_config", "get_peft_model")
_LEAVING = (cst.Return, cst.Raise, cst.Continue, cst.Break)


@dataclass
class Frame:
    """A function that is being followed. ``returned``: what it may return."""

    returned: list[Value] = field(default_factory=list)


class Follower:
    """What is known at the place that has been reached."""

    def __init__(self, folder: Path, script_arguments: Sequence[str] = ()) -> None:
        self.folder = folder
        self.script_arguments = tuple(script_arguments)
        self.scope = Scope({"__name__": Known("__main__")})
        self.calls: list[Call] = []
        #: Questions about the GPU, answered as for one with bfloat16.
        self.assumed: list[Unknown] = []
        #: Values and whole entries of dictionaries that are written out.
        self.entry_spans: dict[tuple[int, str], tuple[Span, Span]] = {}
        self.modules: dict[Path, ModuleValue | None] = {}
        self.followed: set[int] = set()
        self.units: list[Unit] = []
        self.unit: Unit
        self._frames: list[Frame] = []
        self._unsure = 0
        self._statement: tuple[Span, int] | None = None
        self.expressions = Expressions(self)

    # --- units and blocks ----------------------------------------------------------------------

    def follow(self, unit: Unit) -> None:
        """Follow a file, or a cell after those before it."""
        self.unit = unit
        self.units.append(unit)
        self._block(unit.module.body)

    def follow_uncalled(self) -> None:
        """Follow the functions that nobody has called, where nothing that makes a model was: a
        command whose framework calls it."""
        if any(call.method in _MAKERS for call in self.calls):
            return
        for value in list(self.scope.names.values()):
            if isinstance(value, Function) and id(value.node) not in self.followed:
                self.run(value, (), {})

    def reads(self) -> dict[str, int]:
        """How often each name occurs in the program itself, but for where it is set."""
        found: dict[str, int] = {}
        for unit in self.units:
            if unit.editable:
                _count_reads(unit.module, found)
        return found

    def _block(self, body: Sequence[cst.CSTNode]) -> bool:
        """Whether it is left before its end, whatever the conditions are."""
        return any(self._line(node, id(body)) for node in body)

    def _line(self, node: cst.CSTNode, block: int) -> bool:
        step(5)
        if isinstance(node, cst.SimpleStatementLine):
            self._statement = (self.unit.span(node), block)
            return any(self._small(part) for part in node.body)
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        return bool(method(node)) if method is not None else False

    def _suite(self, suite: cst.BaseSuite) -> bool:
        if isinstance(suite, cst.SimpleStatementSuite):
            return any(self._small(part) for part in suite.body)
        return self._block(suite.body)

    @contextmanager
    def _not_sure(self) -> Iterator[None]:
        self._unsure += 1
        try:
            yield
        finally:
            self._unsure -= 1

    # --- compound statements -------------------------------------------------------------------

    def _if(self, node: cst.If) -> bool:
        test = self.value(node.test)
        known = truth(test)
        if known is not None:
            if known:
                return self._suite(node.body)
            return self._else(node.orelse)
        before = dict(self.scope.names)
        with self._not_sure():
            left_body = self._suite(node.body)
            in_body = self.scope.names
            self.scope.names = before
            left_else = self._else(node.orelse)
        in_else = self.scope.names
        if left_body or left_else:
            self.scope.names = in_else if left_body else in_body
        else:
            condition = self.expressions.unknown(node.test)
            self.scope.names = self._joined(in_body, in_else, condition)
        return left_body and left_else

    def _else(self, node: cst.If | cst.Else | None) -> bool:
        if isinstance(node, cst.If):
            return self._if(node)
        return self._suite(node.body) if node is not None else False

    def _joined(
        self, one: dict[str, Value], other: dict[str, Value], condition: Unknown
    ) -> dict[str, Value]:
        step(len(one))
        found = dict(one)
        for name, value in {**other, **one}.items():
            first, second = one.get(name), other.get(name)
            if first is None or second is None or not _same(first, second):
                found[name] = Unknown(
                    name, condition.place, f"depends on `{condition.code}`", condition.span
                ) if first is not None and second is not None else value  # fmt: skip
        return found

    def _with(self, node: cst.With) -> bool:
        for item in node.items:
            value = self.value(item.item)
            if item.asname is not None:
                self._bind(item.asname.name, value)
        return self._suite(node.body)

    def _for(self, node: cst.For) -> bool:
        values = self.value(node.iter)
        first = values.items[0] if isinstance(values, Items) and values.items else None
        self._bind(node.target, first or self.expressions.unknown(node.target))
        self._suite(node.body)
        return False

    def _while(self, node: cst.While) -> bool:
        self.value(node.test)
        self._suite(node.body)
        return False

    def _try(self, node: cst.Try) -> bool:
        before = dict(self.scope.names)
        left = self._suite(node.body)
        after = self.scope.names
        with self._not_sure():
            for handler in node.handlers:
                self.scope.names = dict(before)
                self._suite(handler.body)
                # What only the handler sets is known to nobody else.
                after = {**self.scope.names, **after}
        self.scope.names = after
        if node.orelse is not None:
            left = self._suite(node.orelse.body) or left
        if node.finalbody is not None:
            left = self._suite(node.finalbody.body) or left
        return left

    def _functiondef(self, node: cst.FunctionDef) -> bool:
        name = node.name.value
        function = Function(node, self.unit, self.scope, name=name)
        self.scope.names[name] = function
        for decorator in node.decorators:
            self.value(decorator.decorator)
        return False

    def _classdef(self, node: cst.ClassDef) -> bool:
        self.scope.names[node.name.value] = make_class(self, node)
        return False

    # --- small statements ----------------------------------------------------------------------

    def _small(self, node: cst.BaseSmallStatement) -> bool:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is not None:
            method(node)
        return isinstance(node, _LEAVING)

    def _expr(self, node: cst.Expr) -> None:
        self.value(node.value)

    def _return(self, node: cst.Return) -> None:
        value = self.value(node.value) if node.value is not None else Known(None)
        if self._frames:
            self._frames[-1].returned.append(value)

    def _assign(self, node: cst.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self._bind(target.target, value)

    def _annassign(self, node: cst.AnnAssign) -> None:
        if node.value is not None:
            self._bind(node.target, self.value(node.value))

    def _augassign(self, node: cst.AugAssign) -> None:
        old, new = self.value(node.target), self.value(node.value)
        if isinstance(old, Items) and isinstance(new, Items):
            old.items.extend(new.items)
            return
        self._bind(node.target, self.expressions.unknown(node.target))

    def _import(self, node: cst.Import) -> None:
        for item in node.names:
            name = _dotted(item.name)
            found = sibling(self, name, 0)
            if item.asname is not None:
                self._bind(item.asname.name, found or Reference(name))
            else:
                top = name.partition(".")[0]
                self.scope.names[top] = found if found and top == name else Reference(top)

    def _importfrom(self, node: cst.ImportFrom) -> None:
        module = _dotted(node.module) if node.module is not None else ""
        found = sibling(self, module, len(node.relative))
        if isinstance(node.names, cst.ImportStar):
            if found is not None:
                self.scope.names.update(found.scope.names)
            else:
                self.scope.stars.append(module)
            return
        for item in node.names:
            name = _dotted(item.name)
            value = found.scope.names.get(name) if found is not None else None
            bound = item.asname.name if item.asname is not None else item.name
            if value is None:
                value = sibling(self, f"{module}.{name}".strip("."), len(node.relative))
            self._bind(bound, value or Reference(f"{module}.{name}"))

    # --- names ---------------------------------------------------------------------------------

    def value(self, node: cst.BaseExpression) -> Value:
        """The value of an expression."""
        return self.expressions.value(node)

    def look_up(self, name: str) -> Value | None:
        """What a name stands for here; a star import that has it, where nothing else does."""
        found = self.scope.find(name)
        if found is not None:
            return found
        for module in self.scope.starred():
            if importable(module, name) == "there":
                return Reference(f"{module}.{name}")
        return Reference(f"builtins.{name}") if name in _BUILTINS else None

    def attribute(self, owner: Value, name: str) -> Value | None:
        """An attribute of a value."""
        return attribute(self, owner, name)

    def _bind(self, target: cst.CSTNode, value: Value) -> None:
        step()
        if isinstance(target, cst.Name):
            self.scope.names[target.value] = value
        elif isinstance(target, (cst.Tuple, cst.List)):
            for number, element in enumerate(target.elements):
                self._bind(element.value, self._part(value, number, element))
        elif isinstance(target, cst.Attribute):
            owner = self.value(target.value)
            if isinstance(owner, (Thing, Instance)):
                owner.attributes[target.attr.value] = value
        elif isinstance(target, cst.Subscript):
            self._bind_entry(target, value)

    def _bind_entry(self, target: cst.Subscript, value: Value) -> None:
        owner = self.value(target.value)
        index = target.slice[0].slice if len(target.slice) == 1 else None
        if isinstance(owner, Mapping) and isinstance(index, cst.Index):
            key = self.value(index.value)
            if isinstance(key, Known):
                owner.entries[str(key.value)] = value
                self.entry_spans.pop((id(owner.entries), str(key.value)), None)

    def _part(self, value: Value, number: int, node: cst.CSTNode) -> Value:
        """What is unpacked at a place: of a loader that returns a pair the model comes first."""
        if isinstance(value, Items) and number < len(value.items):
            return value.items[number]
        if isinstance(value, Thing) and number == 0:
            return value
        return self.expressions.unknown(node)

    # --- calls ---------------------------------------------------------------------------------

    def call(self, node: cst.Call) -> Value:
        """Record a call, and what it returns."""
        callee, name, receiver = self._callee(node)
        positional, keywords, open_ = self._arguments(node)
        found = call_object(self, callee, positional, keywords)
        if found is not None:
            return found
        if isinstance(callee, Class):
            name = library_base(callee) or name
        statement, block = self._statement or (None, 0)
        call = Call(
            name,
            receiver,
            tuple(positional),
            keywords,
            self.unit.span(node),
            self._unsure == 0,
            len(self.calls),
            open_,
            statement,
            block,
            node=node,
        )
        self.calls.append(call)
        found = known_call(self, call, node)
        call.result = found if found is not None else Thing(call, span=call.span)
        return call.result

    def _callee(self, node: cst.Call) -> tuple[Value | None, str, Value | None]:
        """What is called, how its calls are named, and the object of a method."""
        if not isinstance(node.func, cst.Attribute):
            callee = self.value(node.func)
            return callee, _name_of(callee, self.unit.span(node.func).text), None
        owner, method = self.value(node.func.value), node.func.attr.value
        found = self.attribute(owner, method)
        if isinstance(owner, Thing):
            return found, f"{owner.made_by}().{method}", owner
        if isinstance(found, Reference):
            return found, found.name, None
        return found, f".{method}", owner

    def _arguments(
        self, node: cst.Call
    ) -> tuple[list[Argument], dict[str, Argument], Unknown | None]:
        positional: list[Argument] = []
        keywords: dict[str, Argument] = {}
        open_: Unknown | None = None
        for argument in node.args:
            value = self.value(argument.value)
            span, whole = self.unit.span(argument.value), self.unit.span(argument)
            if argument.star == "**":
                open_ = self._unpack(value, keywords, span) or open_
            elif argument.star == "*":
                open_ = self.expressions.unknown(argument.value)
            elif argument.keyword is not None:
                name = argument.keyword.value
                keywords[name] = Argument(name, value, span, whole)
            else:
                positional.append(Argument("", value, span, whole))
        return positional, keywords, open_

    def _unpack(self, value: Value, keywords: dict[str, Argument], span: Span) -> Unknown | None:
        """The entries of ``**value``; what is not known of it."""
        if not isinstance(value, Mapping):
            place = span.place
            return value if isinstance(value, Unknown) else Unknown(span.text, place, "", span)
        for name, entry in value.entries.items():
            own, whole = self.entry_spans.get((id(value.entries), name), (span, span))
            keywords[name] = Argument(name, entry, own, whole, unpacked=True)
        return value.open

    def run(
        self,
        function: Function,
        positional: Sequence[Argument],
        keywords: dict[str, Argument],
    ) -> Value:
        """Follow a function of the user's with these arguments; what it returns."""
        from lora_doctor.static.program.functions import bound_arguments

        gap = self.expressions.unknown(function.node) if function.unit is self.unit else None
        if len(self._frames) >= _DEEPEST_CALL:
            return gap or Known(None)
        self.followed.add(id(function.node))
        bound = bound_arguments(self, function, positional, keywords)
        frame, kept = Frame(), (self.scope, self.unit, self._statement)
        self._frames.append(frame)
        self.scope, self.unit = Scope(bound, function.scope), function.unit
        try:
            if isinstance(function.node, cst.Lambda):
                return self.value(function.node.body)
            self._suite(function.node.body)
        finally:
            self._frames.pop()
            self.scope, self.unit, self._statement = kept
        return self._returned(frame, function)

    def _returned(self, frame: Frame, function: Function) -> Value:
        if not frame.returned:
            return Known(None)
        first = frame.returned[0]
        if all(_same(first, other) for other in frame.returned[1:]):
            return first
        place = function.unit.span(function.node).place
        return Unknown(f"{function.name}()", place, "returns one of several values")


_BUILTINS = frozenset(
    "dict list tuple set str int float bool len sorted vars getattr range print zip map filter "
    "enumerate any all isinstance open max min sum round super type next iter reversed".split()
)


def _same(one: Value, other: Value) -> bool:
    if one is other:
        return True
    if isinstance(one, Known) and isinstance(other, Known):
        return type(one.value) is type(other.value) and bool(one.value == other.value)
    if isinstance(one, Reference) and isinstance(other, Reference):
        return one.name == other.name
    if isinstance(one, Items) and isinstance(other, Items):
        return len(one.items) == len(other.items) and all(map(_same, one.items, other.items))
    return False


def _dotted(node: cst.CSTNode) -> str:
    if isinstance(node, cst.Attribute):
        return f"{_dotted(node.value)}.{node.attr.value}"
    return node.value if isinstance(node, cst.Name) else ""


def _name_of(callee: Value, text: str) -> str:
    return callee.name if isinstance(callee, (Reference, Class)) else text


def _count_reads(module: cst.Module, found: dict[str, int]) -> None:
    """Add the names and attributes of a tree, without those that are assigned to, named in an
    argument, or imported."""
    todo: list[cst.CSTNode] = [module]
    while todo:
        node = todo.pop()
        step()
        if isinstance(node, (cst.Import, cst.ImportFrom)):
            continue
        if isinstance(node, cst.Name):
            found[node.value] = found.get(node.value, 0) + 1
            continue
        skipped: tuple[cst.CSTNode | None, ...] = ()
        if isinstance(node, (cst.AssignTarget, cst.AnnAssign)):
            skipped = (node.target if isinstance(node.target, cst.Name) else None,)
        elif isinstance(node, cst.Arg):
            skipped = (node.keyword,)
        elif isinstance(node, (cst.FunctionDef, cst.ClassDef, cst.Param)):
            skipped = (node.name,)
        todo += [child for child in node.children if child not in skipped]
