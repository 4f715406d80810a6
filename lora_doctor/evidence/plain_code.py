"""Functions of a program worked out by an evaluator of our own: plain code on rows, and nothing
that could reach beyond them.

The program's code is never executed. A function is read with ``ast``, and each of its operations is
done here on texts, numbers, lists, dictionaries and what a tokenizer returns. What is not in this
subset raises :class:`NotFollowedError`, which says nothing about the program; what an operation
itself raises (a key that is not there) is what Python would raise in its place.
"""

from __future__ import annotations

import ast
import operator
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_doctor.evidence.plain_costs import (
    is_wide,
    spend_on_all,
    spend_on_call,
    spend_on_comparison,
    spend_on_entries,
    spend_on_format,
    spend_on_key,
)
from lora_doctor.evidence.plain_statements import Budget, Statements
from lora_doctor.evidence.plain_values import (
    LONGEST,
    VIEWS,
    Allowed,
    Made,
    NotFollowedError,
    OpenedText,
    is_dictionary,
    is_encoding,
    is_plain,
    is_tensor,
    is_tokenizer,
    methods_of,
    short,
)

_DEEPEST = 30
_CONVERSIONS: Mapping[int, Callable[[Any], str]] = {115: str, 114: repr, 97: ascii}

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}  # fmt: skip
_COMPARED: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda one, other: one in other, ast.NotIn: lambda one, other: one not in other,
}  # fmt: skip
_UNARY: Mapping[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip
_BUILTINS: Mapping[str, Any] = {
    one.__name__: one
    for one in (len, str, int, float, bool, list, tuple, dict, set, range, enumerate, zip, sum, min,
                max, sorted, reversed, any, all, abs, round, isinstance)
}  # fmt: skip


class PlainFunction:
    """A function of the program's, callable by a library. ``names``: what its free names stand for;
    ``line``: of its definition, in the program's file."""

    def __init__(
        self,
        code: ast.FunctionDef | ast.Lambda,
        names: Mapping[str, Any],
        budget: Budget,
        line: int,
        owner: Any = None,
    ) -> None:
        self.code = code
        self.names = names
        self.budget = budget
        self.line = line
        self.owner = owner
        #: Values of defaults, made once: a list among them is the same in each call.
        self.defaults: dict[str, Any] = {}
        self.__name__ = getattr(code, "name", "<lambda>")

    def __reduce__(self) -> Any:
        raise TypeError("a function of a program is not stored")

    def bound(self, owner: Any) -> PlainFunction:
        """The method of an object."""
        found = PlainFunction(self.code, self.names, self.budget, self.line, owner)
        found.defaults = self.defaults
        return found

    def __call__(self, *given: Any, **named: Any) -> Any:
        budget = self.budget
        if budget.depth >= _DEEPEST:
            raise NotFollowedError("calls that are nested too deeply")
        budget.depth += 1
        kept = budget.line
        try:
            scope = _Frame(self, self._arguments(given, named))
            if isinstance(self.code, ast.Lambda):
                found = scope.value(self.code.body)
            else:
                found = scope.run(self.code.body)
            if budget.depth == 1:
                spend_on_all(budget, (found,))  # a library goes through it
        except RecursionError:
            raise NotFollowedError("code that is nested too deeply") from None
        finally:
            budget.depth -= 1
        budget.line = kept  # where something was raised, the line stays the one that raised it
        return found

    def _arguments(self, given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        arguments = self.code.args
        places = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
        values = list(given) if self.owner is None else [self.owner, *given]
        if arguments.vararg is not None or len(values) > len(places):
            raise NotFollowedError("arguments")
        found: dict[str, Any] = {}
        defaults = dict(zip(places[len(places) - len(arguments.defaults):], arguments.defaults,
                            strict=False))  # fmt: skip
        only = [one.arg for one in arguments.kwonlyargs]
        defaults.update({n: d for n, d in zip(only, arguments.kw_defaults, strict=True) if d})
        found.update(zip(places, values, strict=False))
        more = {name: one for name, one in named.items() if name not in (*places, *only)}
        if (more and arguments.kwarg is None) or set(named) & set(found):
            raise NotFollowedError("arguments")
        found.update({name: one for name, one in named.items() if name not in more})
        if arguments.kwarg is not None:
            found[arguments.kwarg.arg] = more
        outer = _Frame(self, {})
        for name, default in defaults.items():
            if name not in found:
                if name not in self.defaults:
                    self.defaults[name] = outer.value(default)
                found[name] = self.defaults[name]
        if set(found) < {*places, *only}:
            raise NotFollowedError("arguments")
        return found


class _Frame(Statements):
    """One call, with what each expression of its code gives."""

    def __init__(self, function: PlainFunction, names: dict[str, Any]) -> None:
        self.function = function
        self.names = names
        self.budget = function.budget
        self.first_line = function.line

    # --- expressions ---------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Any:
        self.budget.step()
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise NotFollowedError(type(node).__name__)
        return method(node)

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        name = node.id
        if name in self.names:
            return self.names[name]
        if name in self.function.names:
            found = self.function.names[name]
            if isinstance(found, NotFollowedError):
                raise found
            return found
        if name in _BUILTINS:
            return _BUILTINS[name]
        if name == "print":
            return _nothing
        raise NotFollowedError(name)

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        return str(short("".join(str(self.value(part)) for part in node.values)))

    def _formattedvalue(self, node: ast.FormattedValue) -> str:
        found = self.value(node.value)
        if not is_plain(found):
            raise NotFollowedError("format")
        spend_on_all(self.budget, (found,))
        if node.conversion != -1:
            found = _CONVERSIONS[node.conversion](found)
        spec = self.value(node.format_spec) if node.format_spec is not None else ""
        if is_wide(spec):
            raise NotFollowedError("format")
        return str(format(found, spec))

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._elements(node.elts))

    def _list(self, node: ast.List) -> list[Any]:
        return list(self._elements(node.elts))

    def _set(self, node: ast.Set) -> set[Any]:
        found = list(self._elements(node.elts))
        spend_on_all(self.budget, found)
        return set(found)

    def _elements(self, nodes: Sequence[ast.expr]) -> Iterator[Any]:
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from self.items(node.value)
            else:
                yield self.value(node)

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None:
                found[self._key(key)] = self.value(value)
                continue
            other = self.value(value)
            if not is_dictionary(other):
                raise NotFollowedError("**")
            found.update(other)
        return found

    def _subscript(self, node: ast.Subscript) -> Any:
        owner = self.value(node.value)
        if not (isinstance(owner, (str, list, tuple)) or is_dictionary(owner) or is_tensor(owner)):
            raise NotFollowedError("entry")
        found = owner[self._key(node.slice)]
        if isinstance(node.slice, ast.Slice):
            spend_on_entries(self.budget, found)
        return found

    def _key(self, node: ast.expr) -> Any:
        found = self.value(node)
        spend_on_key(self.budget, found)
        return found

    def _slice(self, node: ast.Slice) -> slice:
        parts = (node.lower, node.upper, node.step)
        return slice(*(self.value(one) if one is not None else None for one in parts))

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.truth(node.test) else node.orelse)

    def _boolop(self, node: ast.BoolOp) -> Any:
        found = None
        for part in node.values:
            found = self.value(part)
            if bool(found) is isinstance(node.op, ast.Or):
                break
        return found

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        if type(node.op) not in _UNARY:
            raise NotFollowedError("operator")
        return _UNARY[type(node.op)](self.value(node.operand))

    def _binop(self, node: ast.BinOp) -> Any:
        return self.combined(type(node.op), self.value(node.left), self.value(node.right))

    def combined(self, kind: type, left: Any, right: Any) -> Any:
        if kind not in _BINARY or not (is_plain(left) and is_plain(right)):
            raise NotFollowedError("operator")
        if kind is ast.Mod and isinstance(left, str):
            raise NotFollowedError("%")
        if kind is ast.Mult:
            sizes = [len(one) if hasattr(one, "__len__") else one for one in (left, right)]
            if not all(isinstance(one, (int, float)) and abs(one) < 1 << 40 for one in sizes):
                raise NotFollowedError("*")
            if any(hasattr(one, "__len__") for one in (left, right)) and (
                sizes[0] * sizes[1] > LONGEST
            ):
                raise NotFollowedError("*")
        found = short(_BINARY[kind](left, right))
        spend_on_entries(self.budget, found)
        return found

    def _compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for kind, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.value(right_node)
            if is_tensor(left) or is_tensor(right):
                raise NotFollowedError("comparison")
            if not isinstance(kind, (ast.Is, ast.IsNot)):
                spend_on_comparison(self.budget, left, right)
            if not _COMPARED[type(kind)](left, right):
                return False
            left = right
        return True

    def _listcomp(self, node: ast.ListComp) -> list[Any]:
        return [inner.value(node.elt) for inner in self._rounds(node.generators)]

    def _setcomp(self, node: ast.SetComp) -> set[Any]:
        return {inner._key(node.elt) for inner in self._rounds(node.generators)}

    def _generatorexp(self, node: ast.GeneratorExp) -> list[Any]:
        return [inner.value(node.elt) for inner in self._rounds(node.generators)]

    def _dictcomp(self, node: ast.DictComp) -> dict[Any, Any]:
        return {
            inner._key(node.key): inner.value(node.value) for inner in self._rounds(node.generators)
        }

    def _rounds(self, parts: Sequence[ast.comprehension]) -> Iterator[_Frame]:
        """Each round of a comprehension, in a scope of its own."""
        inner = _Frame(self.function, dict(self.names))
        yield from inner._each(parts)

    def _each(self, parts: Sequence[ast.comprehension]) -> Iterator[_Frame]:
        if not parts:
            yield self
            return
        if parts[0].is_async:
            raise NotFollowedError("async")
        for item in self.items(parts[0].iter):
            self.bind(parts[0].target, item)
            if all(self.truth(test) for test in parts[0].ifs):
                yield from self._each(parts[1:])

    def defined(self, node: ast.FunctionDef) -> PlainFunction:
        names = _Chain(self.names, self.function.names)
        return PlainFunction(node, names, self.budget, self.function.line)

    def _lambda(self, node: ast.Lambda) -> PlainFunction:
        names = _Chain(self.names, self.function.names)
        return PlainFunction(node, names, self.budget, self.function.line)

    def items(self, node: ast.expr) -> Iterator[Any]:
        found = self.value(node)
        if isinstance(found, OpenedText):
            found = found.lines
        if not isinstance(found, (list, tuple, str, set, range, zip, enumerate, reversed)) and not (
            is_dictionary(found) or type(found).__name__ in VIEWS
        ):
            raise NotFollowedError("loop")
        for item in found:
            self.budget.step()
            yield item

    def truth(self, node: ast.expr) -> bool:
        found = self.value(node)
        if not is_plain(found):
            raise NotFollowedError("condition")
        return bool(found)

    # --- attributes and calls ------------------------------------------------------------------

    def _attribute(self, node: ast.Attribute) -> Any:
        owner, name = self.value(node.value), node.attr
        if isinstance(owner, Made):
            return owner.attribute(name)
        if name in methods_of(owner):
            return getattr(owner, name)
        if is_encoding(owner) and name in owner:
            return owner[name]
        if is_tokenizer(owner) and not name.startswith("_"):
            found = getattr(owner, name)
            if found is None or isinstance(found, (str, int, list)):
                return found
        raise NotFollowedError(name)

    def _call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute) and node.func.attr in (
            "format", "format_map",
        ):  # fmt: skip
            return self._formatted(node)
        called = self.value(node.func)
        given = list(self._elements(node.args))
        named: dict[str, Any] = {}
        for one in node.keywords:
            if one.arg is not None:
                named[one.arg] = self.value(one.value)
                continue
            more = self.value(one.value)
            if not is_dictionary(more):
                raise NotFollowedError("**")
            named.update(more)
        if not _can_be_called(called):
            raise NotFollowedError("call")
        if called is range and given and max(map(abs, given)) > LONGEST:
            raise NotFollowedError("range")
        if called in (str, isinstance) and not all(is_plain(one) for one in given[:1]):
            raise NotFollowedError("call")
        if not isinstance(called, PlainFunction) and called is not _nothing:
            spend_on_call(self.budget, called, given, named)
        found = short(called(*given, **named))
        short(getattr(called, "__self__", None))
        return found

    def _formatted(self, node: ast.Call) -> str:
        """``"{question}".format(question=...)``, without attributes of what is put in."""
        assert isinstance(node.func, ast.Attribute)
        text = self.value(node.func.value)
        if not isinstance(text, str):
            raise NotFollowedError("format")
        fields = 0
        for _, name, spec, _ in string.Formatter().parse(text):
            fields += 1
            if (name and not name.isidentifier() and not name.isdigit()) or is_wide(spec or ""):
                raise NotFollowedError("format")
        given = list(self._elements(node.args))
        named: dict[str, Any] = {}
        if node.func.attr == "format_map":
            if len(given) != 1 or not is_dictionary(given[0]):
                raise NotFollowedError("format_map")
            named.update(given.pop())
        for one in node.keywords:
            more = self.value(one.value)
            if one.arg is None and not is_dictionary(more):
                raise NotFollowedError("format")
            named.update(more if one.arg is None else {one.arg: more})
        if not all(is_plain(one) for one in (*given, *named.values())):
            raise NotFollowedError("format")
        spend_on_format(self.budget, fields, (*given, *named.values()))
        return str(short(text.format(*given, **named)))


class _Chain(Mapping[str, Any]):
    """Names of a call, then those around its function."""

    def __init__(self, inner: Mapping[str, Any], outer: Mapping[str, Any]) -> None:
        self._inner = inner
        self._outer = outer

    def __getitem__(self, name: str) -> Any:
        return self._inner[name] if name in self._inner else self._outer[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._outer, **self._inner})

    def __len__(self) -> int:
        return len({**self._outer, **self._inner})


def _nothing(*given: Any, **named: Any) -> None:
    """``print`` of the program: nothing is written."""


def _can_be_called(called: Any) -> bool:
    if isinstance(called, (PlainFunction, Allowed)) or called is _nothing:
        return True
    if is_tokenizer(called) or any(called is one for one in _BUILTINS.values()):
        return True
    owner = getattr(called, "__self__", None)
    return getattr(called, "__name__", "") in methods_of(owner)
