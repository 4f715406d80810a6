"""Follows the user's program from top to bottom, without running it: names, functions, calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import libcst as cst

from lora_doctor.limits import step
from lora_doctor.static.installed.installed_names import importable
from lora_doctor.static.program.expressions import Expressions
from lora_doctor.static.program.functions import bound_arguments
from lora_doctor.static.program.known_calls import known_call
from lora_doctor.static.program.objects import attribute, call_object, library_base
from lora_doctor.static.program.parsed_words import as_keywords, given_fields
from lora_doctor.static.program.statements import Frame, Loop, Statements
from lora_doctor.static.program.values import (
    Argument,
    AttributeRead,
    Call,
    Class,
    Function,
    ImportedName,
    Items,
    Known,
    Mapping,
    ModuleValue,
    Reference,
    Scope,
    Thing,
    Unknown,
    Value,
    same,
    through,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.started import Start
    from lora_doctor.static.program.units import Span, Unit

_DEEPEST_CALL = 12
_MAKERS = ("from_pretrained", "from_config", "get_peft_model")
_LEAVING = (cst.Return, cst.Raise, cst.Continue, cst.Break)


class Follower(Statements):
    """What is known at the place that has been reached."""

    def __init__(
        self,
        folder: Path,
        script_arguments: Sequence[str] = (),
        start: Start | None = None,
        beside: dict[Path, bytes] | None = None,
    ) -> None:
        self.folder = folder
        self.beside = dict(beside or {})
        self.script_arguments = tuple(script_arguments)
        self.start = start
        self.scope = Scope({"__name__": Known("__main__")})
        self.calls: list[Call] = []
        self.attribute_reads: list[AttributeRead] = []
        #: Questions about the GPU, answered as for one with bfloat16.
        self.assumed: list[Unknown] = []
        self.first_rounds: list[tuple[Unknown, int]] = []
        self.modules: dict[Path, ModuleValue | None] = {}
        self.followed: set[int] = set()
        self.units: list[Unit] = []
        self.imported: list[Unit] = []
        self.unit: Unit
        self.frames: list[Frame] = []
        self.unsure = 0
        self.repeated = 0
        self.handling = 0
        self.imports: list[ImportedName] = []
        self.guarded = 0
        self.loops: list[Loop] = []
        self.statement: tuple[Span, int] | None = None
        self.expressions = Expressions(self)

    # --- units and blocks ----------------------------------------------------------------------

    def follow(self, unit: Unit) -> None:
        """Follow a file, or a cell after those before it."""
        self.unit = unit
        self.units.append(unit)
        self.block(unit.module.body)

    def follow_uncalled(self) -> None:
        """Follow the functions that nobody has called, where nothing that makes a model was: a
        command whose framework calls it."""
        if any(call.method in _MAKERS for call in self.calls):
            return
        for value in list(self.scope.names.values()):
            if isinstance(value, Function) and id(value.node) not in self.followed:
                place = value.unit.span(value.node)
                self.run(value, (), as_keywords(given_fields(self.script_arguments), place))

    def reads(self, units: Sequence[Unit]) -> dict[str, int]:
        """How often each name occurs in these units, but for where it is set."""
        found: dict[str, int] = {}
        for unit in units:
            _count_reads(unit.module, found)
        return found

    # --- names ---------------------------------------------------------------------------------

    def value(self, node: cst.BaseExpression) -> Value:
        """The value of an expression."""
        return self.expressions.value(node)

    def unknown(self, node: cst.CSTNode, advice: str = "") -> Unknown:
        """The expression as something that the text does not say."""
        return self.expressions.unknown(node, advice)

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

    def note_read(
        self, owner: Thing, name: str, node: cst.CSTNode, kind: str = "attribute"
    ) -> None:
        """Record what is read off an object."""
        self.attribute_reads.append(
            AttributeRead(
                owner, name, self.unit.span(node), not self.unsure, self.guarded > 0, kind
            )
        )

    # --- calls ---------------------------------------------------------------------------------

    def call(self, node: cst.Call) -> Value:
        """Record a call, and what it returns."""
        callee, name, receiver = self._callee(node)
        positional, keywords, open_ = self._arguments(node)
        while isinstance(callee, Thing) and callee.made_by == "functools.partial":
            given = callee.call
            callee = given.value("", 0)
            positional = [*given.positional[1:], *positional]
            keywords, open_ = {**given.keywords, **keywords}, open_ or given.open
            name = _name_of(callee, name)
        found = call_object(self, callee, positional, keywords)
        if found is not None:
            return found
        if isinstance(callee, Class):
            name = library_base(callee) or name
        statement, block = self.statement or (None, 0)
        call = Call(
            name,
            receiver,
            tuple(positional),
            keywords,
            self.unit.span(node),
            self.unsure == 0,
            len(self.calls),
            open_,
            statement,
            block,
            node=node,
            guarded=self.guarded > 0,
            heir=callee if isinstance(callee, Class) else None,
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
            elif argument.star == "*" and isinstance(value, Items) and value.open is None:
                positional += [Argument("", item, span, whole) for item in value.items]
            elif argument.star == "*":
                open_ = self.unknown(argument.value)
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
            own, whole = value.spans.get(name, (span, span))
            for read in value.via:
                entry = through(entry, read)
            keywords[name] = Argument(name, entry, own, whole, unpacked=True)
        return value.open

    def run(
        self,
        function: Function,
        positional: Sequence[Argument],
        keywords: dict[str, Argument],
    ) -> Value:
        """Follow a function of the user's with these arguments; what it returns."""
        gap = self.unknown(function.node) if function.unit is self.unit else None
        if len(self.frames) >= _DEEPEST_CALL:
            return gap or Known(None)
        self.followed.add(id(function.node))
        bound = bound_arguments(self, function, positional, keywords)
        frame, kept = Frame(), (self.scope, self.unit, self.statement)
        self.frames.append(frame)
        self.scope, self.unit = Scope(bound, function.scope), function.unit
        try:
            if isinstance(function.node, cst.Lambda):
                return self.value(function.node.body)
            self.suite(function.node.body)
        finally:
            self.frames.pop()
            self.scope, self.unit, self.statement = kept
        return self._returned(frame, function)

    def _returned(self, frame: Frame, function: Function) -> Value:
        if not frame.returned:
            return Known(None)
        first = frame.returned[0]
        if all(same(first, other) for other in frame.returned[1:]):
            return first
        place = function.unit.span(function.node).place
        return Unknown(f"{function.name}()", place, "returns one of several values")


_BUILTINS = frozenset(
    [
        "dict",
        "list",
        "tuple",
        "set",
        "str",
        "int",
        "float",
        "bool",
        "len",
        "sorted",
        "vars",
        "getattr",
        "setattr",
        "range",
        "print",
        "zip",
        "map",
        "filter",
        "enumerate",
        "any",
        "all",
        "isinstance",
        "open",
        "max",
        "min",
        "sum",
        "round",
        "super",
        "type",
        "next",
        "iter",
        "reversed",
    ]
)


def _name_of(callee: Value | None, text: str) -> str:
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
        if isinstance(node, cst.AssignTarget) and isinstance(node.target, (cst.Tuple, cst.List)):
            parts = [element.value for element in node.target.elements]
            todo += [part for part in parts if not isinstance(part, cst.Name)]
            continue
        if isinstance(node, (cst.AssignTarget, cst.AnnAssign)):
            skipped = (node.target if isinstance(node.target, cst.Name) else None,)
        elif isinstance(node, cst.Arg):
            skipped = (node.keyword,)
        elif isinstance(node, (cst.FunctionDef, cst.ClassDef, cst.Param)):
            skipped = (node.name,)
        todo += [child for child in node.children if child not in skipped]
