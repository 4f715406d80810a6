"""Members of classes of installed packages, their own and inherited, and what a call of one
returns: read, never imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.static.installed.signatures import class_statement, function_statement

_DEPTH = 8
#: Where a base is looked for that is not in the package of its heir.
_PACKAGES = ("transformers", "trl", "peft", "torch", "huggingface_hub")
#: Bases that add nothing that a program calls.
_PLAIN = frozenset({"object", "ABC", "Generic", "Protocol", "NamedTuple", "str", "Enum", "dict"})
_BUILTINS = frozenset({"dict", "list", "tuple", "set", "int", "float", "str", "bool", "bytes"})
#: Statements beside the one that tells what a member is.
_OTHER_HALVES = frozenset({"setter", "deleter", "overload"})
_CONTEXT = ("contextmanager", "asynccontextmanager")
_PROPERTY = ("property", "cached_property")

#: A class by its package and its name; ``builtins.None`` for nothing.
TypeName = tuple[str, str]
NOTHING: TypeName = ("builtins", "None")
CONTEXT: TypeName = ("contextlib", "AbstractContextManager")


@dataclass(frozen=True)
class Member:
    """A method or property. ``package``, ``owner``: the class whose statement has it."""

    package: str
    owner: str
    node: ast.FunctionDef

    @property
    def is_property(self) -> bool:
        return any(name in _PROPERTY for name in _decorators(self.node))

    @property
    def is_bound(self) -> bool:
        """Whether the first argument is the object's or the class's."""
        return "staticmethod" not in _decorators(self.node)

    @property
    def place(self) -> str:
        return f"{self.package}: {self.owner}.{self.node.name}, line {self.node.lineno}"


@functools.cache
def member_of(package: str, name: str, member: str) -> Member | None:
    """The member that objects of a class have; ``None`` where no class statement that can be read
    has it."""
    for where, node in class_chain(package, name):
        named = (one for one in node.body if getattr(one, "name", "") == member)
        for one in named:
            if isinstance(one, ast.FunctionDef) and not _OTHER_HALVES & {*_decorators(one)}:
                return Member(where, node.name, one)
    return None


def class_chain(package: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """The class statement and those of its bases, each with its package, as far as they are
    found."""
    yield from _chain(package, name, _DEPTH)


def _chain(package: str, name: str, depth: int) -> Iterator[tuple[str, ast.ClassDef]]:
    found = _locate(package, name) if depth else None
    if found is None:
        return
    yield found
    for base in found[1].bases:
        inherited = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        if inherited not in _PLAIN and inherited.isidentifier():
            yield from _chain(found[0], inherited, depth - 1)


def _locate(package: str, name: str) -> tuple[str, ast.ClassDef] | None:
    for place in dict.fromkeys((package, *_PACKAGES)):
        node = class_statement(place, name)
        if node is not None:
            return place, node
    return None


def returned_by(package: str, node: ast.FunctionDef, depth: int = _DEPTH) -> TypeName | None:
    """The class of what a function returns; ``None`` where its text does not say."""
    words = _decorators(node)
    if any(word in _CONTEXT for word in words):
        return CONTEXT
    if any(word in (*_PROPERTY, "overload") for word in words) and node.returns is None:
        return None
    named = _annotated(package, node.returns) if node.returns is not None else None
    if named is not None or not depth:
        return named
    inside = list(_own_statements(node))
    if _says_nothing(node) or any(isinstance(one, (ast.Yield, ast.YieldFrom)) for one in inside):
        return None
    values = [one.value for one in inside if isinstance(one, ast.Return) and one.value is not None]
    values = [one for one in values if not (isinstance(one, ast.Constant) and one.value is None)]
    if not values:
        return NOTHING if node.returns is None else None
    kinds = {_of_expression(package, node, value, depth - 1) for value in values}
    return kinds.pop() if len(kinds) == 1 else None


def _annotated(package: str, node: ast.expr) -> TypeName | None:
    """What an annotation names: a class of the package, a builtin or nothing. A union says no
    more than nothing at all."""
    if isinstance(node, ast.Constant):
        if node.value is None:
            return NOTHING
        text = str(node.value)
    else:
        text = ast.unparse(node)
    name = text.partition("[")[0].strip().strip("'\"").rpartition(".")[2]
    if "|" in text.partition("[")[0] or not name.isidentifier():
        return None
    if name == "None":
        return NOTHING
    if name.lower() in _BUILTINS and (name in _BUILTINS or "[" in text or name.istitle()):
        return ("builtins", name.lower())
    if name == "Self":
        return ("", "Self")
    if name in ("Union", "Optional", "Any", "Callable"):
        return None
    return (package, name) if class_statement(package, name) is not None else None


def _of_expression(
    package: str, function: ast.FunctionDef, node: ast.expr, depth: int
) -> TypeName | None:
    """What a returned expression is: a class that is called, or what ``load_state_dict`` of a
    module hands back."""
    if isinstance(node, ast.Name):
        made = [
            one.value
            for one in _own_statements(function)
            if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == node.id
        ]
        kinds = {
            _of_expression(package, function, value, depth)
            for value in made
            if not isinstance(value, ast.Name)
        }
        return kinds.pop() if len(kinds) == 1 and made else None
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name):
        name = node.func.id
        if class_statement(package, name) is not None:
            return (package, name)
        called = function_statement(package, name)
        return returned_by(package, called, depth) if called is not None else None
    if isinstance(node.func, ast.Attribute) and node.func.attr == "load_state_dict":
        found = member_of("torch", "Module", "load_state_dict")
        return returned_by("torch", found.node, depth) if found is not None else None
    return None


def _own_statements(node: ast.FunctionDef) -> Iterator[ast.AST]:
    """Everything in a function but what stands in functions and classes inside it."""
    todo: list[ast.AST] = list(node.body)
    while todo:
        one = todo.pop()
        yield one
        if not isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            todo += ast.iter_child_nodes(one)


def _says_nothing(node: ast.FunctionDef) -> bool:
    """Whether it is left to heirs: no more than a docstring, ``...``, or an error at its end."""
    body = [
        one
        for one in node.body
        if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
    ]
    return not body or isinstance(body[-1], (ast.Raise, ast.Pass))


def _decorators(node: ast.FunctionDef) -> list[str]:
    """The last words of the decorators."""
    called = [one.func if isinstance(one, ast.Call) else one for one in node.decorator_list]
    return [ast.unparse(one).rpartition(".")[2] for one in called]
