"""The value of an expression of the user's program, as far as its text says. Nothing is run."""

from __future__ import annotations

import ast
import operator
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import libcst as cst

from lora_doctor.limits import step
from lora_doctor.static.program.comprehensions import listed, mapped
from lora_doctor.static.program.known_names import known_name
from lora_doctor.static.program.truth import is_model, truth
from lora_doctor.static.program.values import (
    LONGEST,
    Function,
    Instance,
    Items,
    Known,
    Mapping,
    ModuleValue,
    NotPlainError,
    Part,
    Reference,
    ReferenceName,
    Thing,
    Unknown,
    Value,
    constant,
    leaves,
    plain,
    through,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

_CONSTANTS = {"True": True, "False": False, "None": None}
_LONGEST_NUMBER = 256  # bits
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Subtract": operator.sub, "Multiply": operator.mul,
    "Divide": operator.truediv, "FloorDivide": operator.floordiv, "Modulo": operator.mod,
    "Power": operator.pow, "LeftShift": operator.lshift, "RightShift": operator.rshift,
}  # fmt: skip
_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": operator.eq, "NotEqual": operator.ne, "LessThan": operator.lt,
    "LessThanEqual": operator.le, "GreaterThan": operator.gt, "GreaterThanEqual": operator.ge,
    "Is": operator.is_, "IsNot": operator.is_not,
    "In": lambda one, other: one in other, "NotIn": lambda one, other: one not in other,
}  # fmt: skip
_DTYPE = re.compile(r"torch\.(?:b?float\d*|half|double|u?int\d+|float8_\w+)")
_UNARY: dict[str, Callable[[Any], Any]] = {
    "Minus": operator.neg, "Plus": operator.pos, "Not": operator.not_,
}  # fmt: skip


class Expressions:
    """Evaluates the nodes of expressions; calls are the follower's business."""

    def __init__(self, follower: Context) -> None:
        self.follower = follower
        self._methods: dict[type, Any] = {}
        #: Numbers that were read: those of a loop are asked for in each round.
        self._numbers: dict[cst.BaseExpression, Known] = {}

    def value(self, node: cst.BaseExpression) -> Value:
        """What the expression stands for."""
        step(5)
        kind = type(node)
        if kind not in self._methods:
            self._methods[kind] = getattr(self, f"_{kind.__name__.lower()}", None)
        method = self._methods[kind]
        found = method(node) if method is not None else None
        return found if found is not None else self.unknown(node)

    def unknown(self, node: cst.CSTNode, advice: str = "") -> Unknown:
        """The expression as something that the text does not say."""
        span = self.follower.unit.span(node)
        code = " ".join(span.text.split())
        short = code if len(code) <= 60 else f"{code[:57]}..."
        return Unknown(short, span.place, advice, span)

    def _literal(self, node: cst.BaseExpression) -> Value | None:
        if node not in self._numbers:
            span = self.follower.unit.span(node)
            try:
                self._numbers[node] = Known(ast.literal_eval(span.text.strip()), span)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return None
        return self._numbers[node]

    _integer = _float = _literal

    def _simplestring(self, node: cst.SimpleString) -> Value:
        return Known(node.evaluated_value, self.follower.unit.span(node))

    def _concatenatedstring(self, node: cst.ConcatenatedString) -> Value | None:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(left, Known) and isinstance(right, Known):
            return Known(left.value + right.value, self.follower.unit.span(node))
        return None

    def _formattedstring(self, node: cst.FormattedString) -> Value | None:
        parts = []
        for part in node.parts:
            if isinstance(part, cst.FormattedStringText):
                text = _text_of(part.value)
                if text is None:
                    return None
                parts.append(text)
                continue
            assert isinstance(part, cst.FormattedStringExpression)
            found = self.value(part.expression)
            if not isinstance(found, Known):
                return found if isinstance(found, Unknown) else None
            if part.conversion or part.format_spec:
                return None
            parts.append(str(found.value))
            if sum(map(len, parts)) > LONGEST:
                return None
        return Known("".join(parts), self.follower.unit.span(node))

    def _name(self, node: cst.Name) -> Value | None:
        if node.value in _CONSTANTS:
            return Known(_CONSTANTS[node.value], self.follower.unit.span(node))
        found = self.follower.look_up(node.value)
        if isinstance(found, Reference) and found.span is None:  # of an import, not of a variable
            known = known_name(self.follower, found.name)
            return known or Reference(found.name, self.follower.unit.span(node))
        return through(found, node.value) if found is not None else None

    def _attribute(self, node: cst.Attribute) -> Value | None:
        owner = self.value(node.value)
        name = node.attr.value
        found = self.follower.attribute(owner, name)
        if isinstance(found, Reference) and isinstance(owner, Reference):
            known = known_name(self.follower, found.name)
            return known or Reference(found.name, self.follower.unit.span(node))
        if found is not None:
            return through(found, name)
        if isinstance(owner, Thing):
            self.follower.note_read(owner, node.attr.value, node)
        if isinstance(owner, Instance) and owner.of is None:
            return self.unknown(node, f"pass `--{name}`")
        if isinstance(owner, Unknown) and owner.advice:
            return self.unknown(node, owner.advice)
        return self._part(node, owner, name, attribute=True)

    def _part(
        self, node: cst.BaseExpression, owner: Value, name: Any, *, attribute: bool = False
    ) -> Unknown | None:
        """An entry or an attribute of what a library made, which only the library knows."""
        if not isinstance(owner, Thing) and not (isinstance(owner, Unknown) and owner.part):
            return None
        return replace(self.unknown(node), part=Part(owner, name, attribute))

    def _unaryoperation(self, node: cst.UnaryOperation) -> Value | None:
        found = self.value(node.expression)
        kind = type(node.operator).__name__
        if kind == "Not":
            known = truth(found)
            return Known(not known) if known is not None else _same_gap(found)
        if not isinstance(found, Known) or kind not in _UNARY:
            return _same_gap(found)
        return _computed(_UNARY[kind], found.value, span=self.follower.unit.span(node))

    def _binaryoperation(self, node: cst.BinaryOperation) -> Value | None:
        left, right = self.value(node.left), self.value(node.right)
        return combined(type(node.operator).__name__, left, right)

    def _booleanoperation(self, node: cst.BooleanOperation) -> Value | None:
        left = self.value(node.left)
        known = truth(left)
        if known is None:
            return _same_gap(left)
        takes_right = known == isinstance(node.operator, cst.And)
        return self.value(node.right) if takes_right else left

    def _comparison(self, node: cst.Comparison) -> Value | None:
        if len(node.comparisons) != 1:
            return None
        target = node.comparisons[0]
        left, right = self.value(node.left), self.value(target.comparator)
        kind = type(target.operator).__name__
        nothing = isinstance(right, Known) and right.value is None
        if kind in ("Is", "IsNot") and nothing and _is_object(left):
            return Known(kind == "IsNot")
        try:
            both = plain(left), plain(right)
            return _computed(_COMPARED[kind], *both) if _comparable(kind, *both) else None
        except (NotPlainError, KeyError):
            return _same_gap(left) or _same_gap(right)

    def _ifexp(self, node: cst.IfExp) -> Value | None:
        test = self.value(node.test)
        known = truth(test)
        if known is None:
            return _same_gap(test)
        return self.value(node.body if known else node.orelse)

    def _list(self, node: cst.List | cst.Tuple | cst.Set) -> Value | None:
        items: list[Value] = []
        for element in node.elements:
            found = self.value(element.value)
            if not isinstance(element, cst.StarredElement):
                items.append(found)
            elif isinstance(found, Items) and found.open is None:
                items += found.items
            else:
                return _same_gap(found)
        kind = type(node).__name__.lower()
        return Items(items, kind, self.follower.unit.span(node))

    _tuple = _set = _list

    def _dict(self, node: cst.Dict) -> Value | None:
        found = Mapping({}, self.follower.unit.span(node))
        for element in node.elements:
            value = self.value(element.value)
            if isinstance(element, cst.StarredDictElement):
                if not isinstance(value, Mapping):
                    found.gaps.append(_same_gap(value) or self.unknown(element.value))
                    continue
                found.take(value)
                continue
            assert isinstance(element, cst.DictElement)
            key = self.value(element.key)
            if not isinstance(key, Known):
                found.gaps.append(self.unknown(element.key))
                continue
            found.entries[str(key.value)] = value
            spans = self.follower.unit.span(element.value), self.follower.unit.span(element)
            found.spans[str(key.value)] = spans
        return found

    def _note_entry_read(self, node: cst.Subscript, owner: Value, key: Value) -> None:
        """That an attribute is read by an index, or an object by a name."""
        last = self.follower.attribute_reads[-1:]
        if isinstance(node.value, cst.Attribute) and last and last[0].span.end == (
            self.follower.unit.span(node.value).end
        ):  # fmt: skip
            self.follower.note_read(last[0].owner, last[0].name, node.value, "indexed")
        if isinstance(owner, Thing) and isinstance(key, Known) and isinstance(key.value, str):
            self.follower.note_read(owner, key.value, node, "item")

    def _subscript(self, node: cst.Subscript) -> Value | None:
        owner = self.value(node.value)
        if len(node.slice) != 1:
            return None
        index = node.slice[0].slice
        if not isinstance(index, cst.Index):
            return self._sliced(owner, index) if isinstance(index, cst.Slice) else None
        key = self.value(index.value)
        self._note_entry_read(node, owner, key)
        if isinstance(owner, Reference) and owner.name == "os.environ":
            return environment(self.follower, key, None) or self.unknown(node, _set_variable(key))
        if not isinstance(key, Known):
            return None
        try:
            if isinstance(owner, Items):
                item: Value = owner.open or owner.items[key.value]
                return item
            if isinstance(owner, Mapping):
                return owner.entries.get(str(key.value))
            if isinstance(owner, (Thing, Unknown)):
                return self._part(node, owner, key.value)
            return _computed(operator.getitem, constant(owner), key.value)
        except (IndexError, TypeError, KeyError, NotPlainError):
            return None

    def _sliced(self, owner: Value, part: cst.Slice) -> Value | None:
        """``rows[:8]`` of what is known."""
        bounds = [self.value(one) if one is not None else Known(None)
                  for one in (part.lower, part.upper, part.step)]  # fmt: skip
        numbers = [one.value for one in bounds if isinstance(one, Known)]
        plain_numbers = all(one is None or type(one) is int for one in numbers)
        if len(numbers) < len(bounds) or not plain_numbers or numbers[2] == 0:
            return None
        if isinstance(owner, Items) and owner.open is None and owner.kind != "set":
            return Items(owner.items[slice(*numbers)], owner.kind)
        if isinstance(owner, Known) and isinstance(owner.value, str):
            return Known(owner.value[slice(*numbers)])
        return None

    def _listcomp(self, node: cst.ListComp | cst.SetComp | cst.GeneratorExp) -> Value | None:
        return listed(self.follower, node)

    _setcomp = _generatorexp = _listcomp

    def _dictcomp(self, node: cst.DictComp) -> Value | None:
        return mapped(self.follower, node)

    def _lambda(self, node: cst.Lambda) -> Value:
        follower = self.follower
        return Function(node, follower.unit, follower.scope)

    def _call(self, node: cst.Call) -> Value | None:
        return self.follower.call(node)

    def _await(self, node: cst.Await) -> Value:
        return self.value(node.expression)

    def _namedexpr(self, node: cst.NamedExpr) -> Value:
        found = self.value(node.value)
        if isinstance(node.target, cst.Name):
            self.follower.scope.names[node.target.value] = found
        return found


def _text_of(written: str) -> str | None:
    """What a piece of an f-string says; ``None`` where it ends in what ends a string here."""
    text = written
    if "\\" in written:
        try:
            text = str(ast.literal_eval(f'"""{written}"""'))
        except (SyntaxError, ValueError):
            return None
    return text.replace("{{", "{").replace("}}", "}")


def combined(kind: str, left: Value, right: Value) -> Value | None:
    """What an operator (``Add``, ``BitOr``, ...) makes of two values; ``None`` where the text does
    not say."""
    if isinstance(left, Items) and isinstance(right, Items) and kind == "Add":
        if len(left.items) + len(right.items) > LONGEST:
            return None
        items = [*left.items, *right.items]
        return Items(items, left.kind, gaps=[*left.gaps, *right.gaps])
    if isinstance(left, Items) and isinstance(right, Known) and kind == "Multiply":
        return _repeated(left, right.value)
    if isinstance(left, Mapping) and isinstance(right, Mapping) and kind == "BitOr":
        joined = Mapping({})
        joined.take(left)
        joined.take(right)
        return joined
    both = [side.value for side in (left, right) if isinstance(side, Known)]
    if kind == "Divide" and [type(side) for side in both] == [str, str]:  # of paths
        return Known(os.path.join(*both))
    if not isinstance(left, Known) or not isinstance(right, Known) or kind not in _BINARY:
        return _same_gap(left) or _same_gap(right)
    texts = isinstance(left.value, str) or isinstance(right.value, str)
    if texts and (kind == "Multiply" or (kind == "Modulo" and not _plain_format(left.value))):
        return None  # a short text may ask for a very long one
    if kind in ("Power", "LeftShift") and not _small(left.value, right.value):
        return None
    return _computed(_BINARY[kind], left.value, right.value)


def _repeated(items: Items, times: Any) -> Items | None:
    """``[row] * 8``."""
    if type(times) is not int or len(items.items) * times > LONGEST:
        return None
    return Items(items.items * times, items.kind, gaps=list(items.gaps))


def _small(base: Any, exponent: Any) -> bool:
    """Whether a power of these takes no time to compute."""
    numbers = all(isinstance(one, (int, float)) for one in (base, exponent))
    return numbers and abs(exponent) <= 64 and abs(base) < 2**32


def _comparable(kind: str, left: Any, right: Any) -> bool:
    """Whether names say how two values compare: dtypes are what they are called, while the value of
    another name of a library is not in the text, nor is the order of names."""
    found = [*leaves(left), *leaves(right)]
    named = [one for one in found if isinstance(one, ReferenceName)]
    if not named or None in found:
        return True
    if kind not in ("Equal", "NotEqual", "Is", "IsNot", "In", "NotIn"):
        return False
    return len(named) == len(found) or all(_DTYPE.fullmatch(one) for one in named)


def _plain_format(text: Any) -> bool:
    """Whether a text has no more than ``%s`` and ``%d`` to fill in."""
    return isinstance(text, str) and not re.search(r"%[^sd%]", text)


def _is_object(value: Value) -> bool:
    return isinstance(value, (Items, Mapping, Reference, Function, Instance, ModuleValue)) or (
        isinstance(value, Thing) and (is_model(value) or value.call.method[:1].isupper())
    )


def _same_gap(value: Value) -> Unknown | None:
    """The part that is not known, where it is the reason for this."""
    return value if isinstance(value, Unknown) else None


def _computed(function: Callable[..., Any], *values: Any, span: Any = None) -> Value | None:
    try:
        found = function(*values)
    except Exception:  # noqa: BLE001 - what the program's own arithmetic raises
        return None
    if isinstance(found, (str, bytes, list, tuple)) and len(found) > LONGEST:
        return None
    if isinstance(found, int) and found.bit_length() > _LONGEST_NUMBER:
        return None
    if isinstance(found, (tuple, list)):
        return Items([Known(item) for item in found], type(found).__name__)
    return Known(found, span)


def environment(follower: Context, key: Value | None, default: Value | None) -> Value | None:
    """A variable of the environment that the program would have from here, or that the command sets
    by which a shell file starts it."""
    if not isinstance(key, Known) or not isinstance(key.value, str):
        return default
    start = follower.start
    if start is not None and key.value in dict(start.environment):
        return Known(dict(start.environment)[key.value])
    if start is not None and key.value in start.unknown:
        return Unknown(f"${key.value}", start.place, "only the shell knows its value")
    return Known(os.environ[key.value]) if key.value in os.environ else default


def _set_variable(key: Value) -> str:
    return f"set the variable {key.value}" if isinstance(key, Known) else ""
