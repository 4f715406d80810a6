"""Statements of a program, followed one after the other: branches, loops, bindings, imports.

A branch whose condition is not known is followed on both sides; what the two leave different is
not known afterwards, and the calls in them are not certain. A loop is followed once.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import libcst as cst

from lora_doctor.limits import step
from lora_doctor.static.program.bindings import Bindings
from lora_doctor.static.program.matching import matches
from lora_doctor.static.program.objects import make_class
from lora_doctor.static.program.siblings import sibling
from lora_doctor.static.program.started import Start
from lora_doctor.static.program.truth import truth
from lora_doctor.static.program.units import Span, Unit
from lora_doctor.static.program.values import (
    Argument,
    AttributeRead,
    Function,
    ImportedName,
    Items,
    Known,
    ModuleValue,
    Reference,
    Thing,
    Unknown,
    Value,
    same,
)

_LEAVING = (cst.Return, cst.Raise, cst.Continue, cst.Break)
#: Rounds of a loop that are followed one by one; a model has no more layers.
_MOST_ROUNDS = 2_000
#: What only a loop has that loads, adapts or trains.
_OF_A_RUN = re.compile(r"from_pretrained|from_config|get_peft_model|Trainer|backward|\.step\(")
#: What makes each round a set-up of its own, and not an epoch of one.
_SETS_UP = re.compile(r"from_pretrained|from_config|get_peft_model|Trainer\(")


@dataclass
class Frame:
    """A function that is being followed. ``returned``: what it may return."""

    returned: list[Value] = field(default_factory=list)


@dataclass
class Loop:
    """A loop that is followed round by round; or, with ``unsure`` as ``None``, once.

    ``unsure``: the conditions that are not known around it. ``skips``: the names at each ``break``
    and ``continue`` of which it is not known whether they are reached.
    """

    unsure: int | None
    skips: list[dict[str, Value]] = field(default_factory=list)


class Statements(Bindings):
    """Follows statements; expressions and calls are left to the subclass."""

    unit: Unit
    folder: Path
    script_arguments: tuple[str, ...]
    start: Start | None
    assumed: list[Unknown]
    modules: dict[Path, ModuleValue | None]
    beside: dict[Path, bytes]
    imported: list[Unit]
    #: The functions around, and the statement.
    frames: list[Frame]
    statement: tuple[Span, int] | None
    #: How the block that was left last was left.
    left_by: type[cst.BaseSmallStatement] | None = None
    #: The loops that set up a training in each round, of which the first is followed; each with its
    #: number of rounds.
    first_rounds: list[tuple[Unknown, int]]
    #: The loops that are followed round by round.
    loops: list[Loop]
    #: What is imported from libraries; the ``try`` blocks around that are ready for its failure.
    imports: list[ImportedName]
    guarded: int
    #: What is read off libraries' objects.
    attribute_reads: list[AttributeRead]

    @abstractmethod
    def follow(self, unit: Unit) -> None: ...

    @abstractmethod
    def look_up(self, name: str) -> Value | None: ...

    @abstractmethod
    def attribute(self, owner: Value, name: str) -> Value | None: ...

    @abstractmethod
    def call(self, node: cst.Call) -> Value: ...

    @abstractmethod
    def run(
        self,
        function: Function,
        positional: Sequence[Argument],
        keywords: dict[str, Argument],
    ) -> Value: ...

    def block(self, body: Sequence[cst.CSTNode]) -> bool:
        """Whether it is left before its end, whatever the conditions are."""
        return any(self._line(node, id(body)) for node in body)

    def _line(self, node: cst.CSTNode, block: int) -> bool:
        step(5)
        if isinstance(node, cst.SimpleStatementLine):
            self.statement = (self.unit.span(node), block)
            return any(self._small(part) for part in node.body)
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        return bool(method(node)) if method is not None else False

    def suite(self, suite: cst.BaseSuite) -> bool:
        if isinstance(suite, cst.SimpleStatementSuite):
            return any(self._small(part) for part in suite.body)
        return self.block(suite.body)

    @contextmanager
    def _not_sure(self) -> Iterator[None]:
        self.unsure += 1
        try:
            yield
        finally:
            self.unsure -= 1

    # --- compound statements -------------------------------------------------------------------

    def _if(self, node: cst.If) -> bool:
        test = self.value(node.test)
        known = truth(test)
        if known is not None:
            if known:
                return self.suite(node.body)
            return self._else(node.orelse)
        before = dict(self.scope.names)
        with self._not_sure():
            left_body = self.suite(node.body)
            in_body = self.scope.names
            self.scope.names = before
            left_else = self._else(node.orelse)
        in_else = self.scope.names
        if left_body or left_else:
            self.scope.names = in_else if left_body else in_body
        else:
            condition = self.unknown(node.test)
            self.scope.names = self._joined(in_body, in_else, condition)
        return left_body and left_else

    def _else(self, node: cst.If | cst.Else | None) -> bool:
        if isinstance(node, cst.If):
            return self._if(node)
        return self.suite(node.body) if node is not None else False

    def _joined(
        self, one: dict[str, Value], other: dict[str, Value], condition: Unknown
    ) -> dict[str, Value]:
        step(len(one))
        found = dict(one)
        for name, value in {**other, **one}.items():
            first, second = one.get(name), other.get(name)
            if first is None or second is None or not same(first, second):
                found[name] = Unknown(
                    name, condition.place, f"depends on `{condition.code}`", condition.span
                ) if first is not None and second is not None else value  # fmt: skip
        return found

    def _with(self, node: cst.With) -> bool:
        guards = 0
        for item in node.items:
            value = self.value(item.item)
            if item.asname is not None:
                self.bind(item.asname.name, value)
            guards += _suppresses_imports(value)
        self.guarded += guards
        left = self.suite(node.body)
        self.guarded -= guards
        return left

    def _for(self, node: cst.For) -> bool:
        values = self.value(node.iter)
        known = values.items if isinstance(values, Items) and values.open is None else None
        if known is not None and len(known) <= _MOST_ROUNDS and not self._makes(node.body):
            return self._rounds(node, list(known))
        if known is not None and len(known) > 1 and _SETS_UP.search(self.unit.span(node.body).text):
            self.first_rounds.append((self.unknown(node.iter), len(known)))
        self.bind(node.target, known[0] if known else self.unknown(node.target))
        self._once(node.body)
        return False

    def _rounds(self, node: cst.For, items: Sequence[Value]) -> bool:
        """Each round of a loop over items that are known; whether the function is left in it."""
        loop = Loop(self.unsure)
        self.loops.append(loop)
        left_by = None
        try:
            for item in items:
                self.bind(node.target, item)
                left = self.suite(node.body)
                if left and self.left_by is not cst.Continue:
                    left_by = self.left_by
                    break
        finally:
            self.loops.pop()
            self.unsure = loop.unsure or 0
        for names in loop.skips:
            self.scope.names = self._joined(self.scope.names, names, self.unknown(node.iter))
        if left_by is None and node.orelse is not None:
            return self.suite(node.orelse.body)
        return left_by is cst.Return and not loop.skips

    def _while(self, node: cst.While) -> bool:
        self.value(node.test)
        self._once(node.body)
        return False

    def _once(self, body: cst.BaseSuite) -> None:
        """One round for all of them."""
        self.repeated += 1
        self.loops.append(Loop(None))
        try:
            self.suite(body)
        finally:
            self.loops.pop()
            self.repeated -= 1

    def _makes(self, body: cst.BaseSuite) -> bool:
        """Whether a loop does more than fill lists: a model that is loaded, adapted or trained is
        followed once, as it would be for each round."""
        return bool(_OF_A_RUN.search(self.unit.span(body).text))

    def _try(self, node: cst.Try) -> bool:
        before = dict(self.scope.names)
        guards = any(map(_catches_imports, node.handlers))
        self.guarded += guards
        left = self.suite(node.body)
        self.guarded -= guards
        after = self.scope.names
        with self._not_sure():
            self.handling += 1
            for handler in node.handlers:
                self.scope.names = dict(before)
                self.suite(handler.body)
                # What only the handler sets is known to nobody else.
                after = {**self.scope.names, **after}
            self.handling -= 1
        self.scope.names = after
        if node.orelse is not None:
            left = self.suite(node.orelse.body) or left
        if node.finalbody is not None:
            left = self.suite(node.finalbody.body) or left
        return left

    def _match(self, node: cst.Match) -> bool:
        """The case that is known to be taken; else all that may be, each in doubt."""
        subject = self.value(node.subject)
        before = self.scope.names
        ends: list[dict[str, Value]] = []
        in_doubt = covered = False
        for case in node.cases:
            self.scope.names = dict(before)
            taken = matches(self, case, subject)
            if taken is False:
                continue
            if taken is True and not in_doubt:
                return self.suite(case.body)
            in_doubt, covered = True, taken is True
            with self._not_sure():
                ends += [] if self.suite(case.body) else [self.scope.names]
            if covered:
                break  # nothing gets past it
        ends += [] if covered else [dict(before)]
        if not ends:
            return True
        self.scope.names = ends[0]
        for names in ends[1:]:
            self.scope.names = self._joined(self.scope.names, names, self.unknown(node.subject))
        return False

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
        if isinstance(node, (cst.Break, cst.Continue)):
            self._skip()
        if isinstance(node, _LEAVING):
            self.left_by = type(node)
        return isinstance(node, _LEAVING)

    def _skip(self) -> None:
        """A ``break`` or ``continue``: where it is not known whether it is reached, what comes
        behind it in the loop is in doubt."""
        loop = self.loops[-1] if self.loops else None
        if loop is not None and loop.unsure is not None and self.unsure > loop.unsure:
            self.unsure += 1
            loop.skips.append(dict(self.scope.names))

    def _expr(self, node: cst.Expr) -> None:
        self.value(node.value)

    def _return(self, node: cst.Return) -> None:
        value = self.value(node.value) if node.value is not None else Known(None)
        if self.frames:
            self.frames[-1].returned.append(value)

    def _import(self, node: cst.Import) -> None:
        for item in node.names:
            name = _dotted(item.name)
            found = sibling(self, name, 0)
            if found is None:
                self._note_import(name, "", item)
            if item.asname is not None:
                self.bind(item.asname.name, found or Reference(name))
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
            if value is None and found is None and not node.relative:
                self._note_import(module, name, item)
            self.bind(bound, value or Reference(f"{module}.{name}"))

    def _note_import(self, module: str, name: str, node: cst.ImportAlias) -> None:
        certain = not self.unsure and not self.guarded
        self.imports.append(ImportedName(module, name, self.unit.span(node.name), certain))


#: What an import raises that fails, and what is above that.
_OF_IMPORTS = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException", "RuntimeError",
               "AttributeError")  # fmt: skip


def _catches_imports(handler: cst.ExceptHandler) -> bool:
    """Whether an ``except`` is ready for an import, or a name of a module, that fails."""
    if handler.type is None:
        return True
    kinds = handler.type.elements if isinstance(handler.type, cst.Tuple) else [handler.type]
    names = [_dotted(kind.value if isinstance(kind, cst.Element) else kind) for kind in kinds]
    return any(name in _OF_IMPORTS or "." in name or not name for name in names)


def _suppresses_imports(value: Value) -> bool:
    """Whether it is ``contextlib.suppress(ImportError)`` or one that may be like it."""
    if not isinstance(value, Thing) or value.made_by != "contextlib.suppress":
        return False
    return any(one.span.text.strip() in _OF_IMPORTS for one in value.call.positional)


def _dotted(node: cst.CSTNode) -> str:
    if isinstance(node, cst.Attribute):
        return f"{_dotted(node.value)}.{node.attr.value}"
    return node.value if isinstance(node, cst.Name) else ""
