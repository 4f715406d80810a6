"""What the constructor of an installed class surely does with its arguments: read, never imported.

Only what runs whatever the other arguments are: no branch of an ``if`` is entered, and of what
``and`` and ``or`` join only the first part.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

from lora_doctor.static.installed.signatures import class_statement
from lora_doctor.static.python_source import walk

_DEPTH = 6
_PACKAGES = ("transformers", "trl")


@dataclass(frozen=True)
class Use:
    """What is done with one argument."""

    #: ``attribute`` that is read off it, ``unpacked`` into so many names, or ``added`` to a list.
    kind: str
    #: The attribute; how many names.
    what: str
    #: Class and line.
    place: str


@dataclass
class _Reading:
    """A constructor that is being read. ``argument``: its name there, and as an attribute of
    ``self`` once it has been kept; empty while it is not known any more."""

    owner: str
    argument: str
    kept: bool = False
    found: list[Use] = field(default_factory=list)

    def is_it(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id == self.argument
        own = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self"
        return own and self.kept and isinstance(node, ast.Attribute) and node.attr == self.argument

    def note(self, kind: str, what: str, node: ast.AST) -> None:
        line = getattr(node, "lineno", 0)
        self.found.append(Use(kind, what, f"{self.owner}, line {line}"))


@functools.cache
def constructor_uses(dotted: str, argument: str) -> tuple[Use, ...]:
    """What ``package.Class(argument=…)`` does with an argument that is given and is not ``None``;
    nothing where the source does not say."""
    package, _, rest = dotted.partition(".")
    return tuple(_uses(package, rest.rpartition(".")[2], argument, _DEPTH))


@functools.cache
def attributes_of(dotted: str) -> frozenset[str] | None:
    """The names that objects of a class have; ``None`` where a base of it is not read, or it has
    an answer for any name."""
    package, _, rest = dotted.partition(".")
    return _attributes(package, rest.rpartition(".")[2], _DEPTH)


def _attributes(package: str, name: str, depth: int) -> frozenset[str] | None:
    place, node = _found(package, name)
    if node is None or not depth:
        return None
    names = set(_own_names(node))
    if names & {"__getattr__", "__getattribute__"}:
        return None
    for base in node.bases:
        inherited = ast.unparse(base).rpartition(".")[2]
        if inherited in ("object", "ABC"):
            continue
        if isinstance(base, ast.Call) and ast.unparse(base.func).endswith("namedtuple"):
            names |= {str(one.value) for one in ast.walk(base) if isinstance(one, ast.Constant)}
            inherited = "NamedTuple"
        if inherited == "NamedTuple":
            names |= {*dir(tuple), "_asdict", "_replace", "_make", "_fields"}
            continue
        more = _attributes(place, inherited, depth - 1)
        if more is None:
            return None
        names |= more
    return frozenset(names)


def _own_names(node: ast.ClassDef) -> Iterator[str]:
    """Of a class statement: what is defined in it, and every ``self.name`` that a method sets."""
    todo: list[ast.AST] = list(node.body)
    while todo:
        one = todo.pop()
        if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield one.name
        elif isinstance(one, (ast.Import, ast.ImportFrom)):
            yield from (name.asname or name.name for name in one.names)
        elif isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
            yield one.id
        else:
            todo += ast.iter_child_nodes(one)
    for inner in walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield inner.attr
    if any(getattr(inner, "id", "") == "setattr" for inner in walk(node)):
        # It sets names from a list, which is written out somewhere in the class.
        yield from (one.value for one in walk(node)
                    if isinstance(one, ast.Constant) and isinstance(one.value, str))  # fmt: skip


def _found(package: str, name: str) -> tuple[str, ast.ClassDef | None]:
    for place in dict.fromkeys((package, *_PACKAGES)):
        node = class_statement(place, name)
        if node is not None:
            return place, node
    return package, None


def _uses(package: str, name: str, argument: str, depth: int) -> Iterator[Use]:
    place, node = _found(package, name)
    if node is None or not depth:
        return
    own = next(
        (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"),
        None,
    )
    bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
    if own is None:
        if bases:
            yield from _uses(place, bases[0], argument, depth - 1)
        return
    parameters = own.args
    if argument not in {one.arg for one in (*parameters.args, *parameters.kwonlyargs)}:
        if bases and _hands_all_on(own):
            yield from _uses(place, bases[0], argument, depth - 1)
        return
    reading = _Reading(name, argument)
    for handed in _statements(own.body, reading):
        if bases:
            reading.found += _uses(place, bases[0], handed, depth - 1)
            reading.kept = True
    yield from reading.found


def _hands_all_on(own: ast.FunctionDef) -> bool:
    """``super().__init__(*args, **kwargs)``, as a statement of its own."""
    return own.args.kwarg is not None and any(
        isinstance(one, ast.Expr)
        and isinstance(one.value, ast.Call)
        and ast.unparse(one.value.func) == "super().__init__"
        and any(given.arg is None for given in one.value.keywords)
        for one in own.body
    )


def _statements(body: list[ast.stmt], reading: _Reading) -> Iterator[str]:
    """Read statements in their order, until the argument may be another one; the name by which it
    is handed on to the constructor of the base."""
    for one in body:
        if isinstance(one, ast.If) and _is_for_none(one.test, reading):
            yield from _statements(one.orelse, reading)
            if any(_ends(part) or _changes(part, reading) for part in one.orelse):
                return
            continue
        if isinstance(one, ast.With):
            yield from _statements(one.body, reading)
        yield from _handed_on(one, reading)
        for part in _evaluated(one):
            _expression(part, reading)
        if isinstance(one, ast.Assign):
            _assignment(one, reading)
        if _ends(one) or _changes(one, reading):
            return


def _evaluated(node: ast.stmt) -> list[ast.expr]:
    """The expressions of a statement that are evaluated when it is reached."""
    if isinstance(node, (ast.If, ast.While)):
        return [node.test]
    if isinstance(node, ast.With):
        return [item.context_expr for item in node.items]
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Expr, ast.AugAssign)):
        return [node.value] if node.value is not None else []
    return []


def _is_for_none(test: ast.expr, reading: _Reading) -> bool:
    """``if argument is None``: it is given."""
    return (
        isinstance(test, ast.Compare)
        and reading.is_it(test.left)
        and isinstance(test.ops[0], ast.Is)
        and ast.unparse(test.comparators[0]) == "None"
    )


def _ends(node: ast.stmt) -> bool:
    """Whether what follows may not run. What a ``try`` holds may be caught."""
    if isinstance(node, (ast.Return, ast.Raise, ast.Try)):
        return True
    inside = ast.iter_child_nodes(node) if isinstance(node, (ast.If, ast.For, ast.With)) else ()
    return any(_returns(one) for one in inside if isinstance(one, ast.stmt))


def _returns(node: ast.stmt) -> bool:
    return not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Raise)) and any(
        isinstance(one, ast.Return) or (isinstance(one, ast.stmt) and _returns(one))
        for one in (node, *ast.iter_child_nodes(node))
        if one is not node or isinstance(one, ast.Return)
    )


def _changes(node: ast.stmt, reading: _Reading) -> bool:
    """Whether the name may stand for something else afterwards."""
    return any(
        isinstance(inner, (ast.Name, ast.Attribute))
        and isinstance(inner.ctx, ast.Store)
        and reading.is_it(inner)
        and not _keeps(node, reading)
        for inner in walk(node)
    )


def _keeps(node: ast.stmt, reading: _Reading) -> bool:
    """``self.argument = argument``."""
    return (
        isinstance(node, ast.Assign)
        and reading.is_it(node.value)
        and ast.unparse(node.targets[0]) == f"self.{reading.argument}"
    )


def _assignment(node: ast.Assign, reading: _Reading) -> None:
    if not reading.is_it(node.value):
        return
    target = node.targets[0]
    if isinstance(target, ast.Tuple) and not any(isinstance(e, ast.Starred) for e in target.elts):
        reading.note("unpacked", str(len(target.elts)), node)
    reading.kept = reading.kept or _keeps(node, reading)


def _handed_on(node: ast.stmt, reading: _Reading) -> Iterator[str]:
    """The name under which ``super().__init__``, a statement of its own, gets the argument."""
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
        yield from (one.arg for one in call.keywords if one.arg and reading.is_it(one.value))


def _expression(node: ast.AST, reading: _Reading) -> None:
    """What is surely evaluated of an expression."""
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return None
    if isinstance(node, ast.BoolOp):
        return _expression(node.values[0], reading)
    if isinstance(node, ast.IfExp):
        if _is_for_none(node.test, reading):
            return _expression(node.orelse, reading)
        return _expression(node.test, reading)
    if isinstance(node, ast.Attribute) and reading.is_it(node.value):
        reading.note("attribute", node.attr, node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and reading.is_it(node.right):
        reading.note("added", ast.unparse(node.left), node)
    for child in ast.iter_child_nodes(node):
        _expression(child, reading)
    return None
