"""Classes and objects of the user's own, as far as a set-up is kept in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import libcst as cst

from lora_doctor.limits import step
from lora_doctor.static.program.values import (
    Argument,
    Call,
    Class,
    Function,
    Instance,
    Known,
    Mapping,
    ModuleValue,
    Reference,
    Scope,
    Thing,
    Value,
)

if TYPE_CHECKING:
    from lora_doctor.static.program.context import Context

_FIELDS = ("dataclasses.field", "field", "pydantic.Field")
_LIBRARIES = ("transformers", "trl", "peft", "sentence_transformers")
_DATACLASSES = ("dataclasses.dataclass", "dataclass", "attr.s", "attrs.define")


def attribute(follower: Context, owner: Value, name: str) -> Value | None:
    """An attribute; ``None`` where the text does not say."""
    if isinstance(owner, Reference):
        return Reference(f"{owner.name}.{name}")
    if isinstance(owner, ModuleValue):
        return owner.scope.names.get(name)
    if isinstance(owner, Thing):
        return owner.attributes.get(name) or _of_trainer(owner, name) or _inner(owner, name)
    if isinstance(owner, Mapping):  # an object whose attributes are the entries
        return owner.entries.get(name, owner.open)
    if isinstance(owner, Class):
        return _in_class(owner, name)
    if isinstance(owner, Instance):
        return _of_instance(follower, owner, name)
    if isinstance(owner, Known):
        return _of_constant(owner.value, name)
    return None


def _of_trainer(owner: Thing, name: str) -> Thing | None:
    """``trainer.model``: what the trainer was given, or has put an adapter on."""
    call = owner.call
    if name != "model" or not call.method.endswith("Trainer"):
        return None
    made = Call(f"{call.name}().model", owner, (), {}, call.span, call.certain, call.number)
    owner.attributes[name] = found = Thing(made)
    return found


def _inner(owner: Thing, name: str) -> Thing | None:
    """``model.base_model``, and its ``model``: inside a PEFT model, with the same adapters."""
    call = owner.call
    wrapped = call.method in ("get_peft_model", "model") or ".PeftModel" in call.name
    inside = name == "base_model" and wrapped
    if not inside and not (name == "model" and call.method == "base_model"):
        return None
    made = Call(f"{call.name}().{name}", owner, (), {}, call.span, call.certain, call.number)
    owner.attributes[name] = found = Thing(made)
    return found


def _of_constant(value: Any, name: str) -> Value | None:
    if isinstance(value, str):
        return Known(os.path.dirname(value)) if name == "parent" else None  # of a path
    numbers = name in ("major", "minor", "micro", "base_version") and hasattr(value, "release")
    return Known(getattr(value, name)) if numbers else None  # of a release


def _of_instance(follower: Context, owner: Instance, name: str) -> Value | None:
    if name in owner.attributes:
        return owner.attributes[name]
    if name == "__dict__":
        return Mapping(owner.attributes)
    found = _in_class(owner.of, name) if owner.of is not None else None
    if isinstance(found, Function):
        static = any(_is_named(item, "staticmethod") for item in _decorators(found))
        bound = Function(found.node, found.unit, found.scope, None if static else owner, found.name)
        if any(_is_named(item, "property") for item in _decorators(found)):
            return follower.run(bound, (), {})
        return bound
    return found


def call_object(
    follower: Context,
    callee: Value | None,
    positional: Sequence[Argument],
    keywords: dict[str, Argument],
) -> Value | None:
    """What a call of something of the user's returns; ``None`` for what is not the user's."""
    if isinstance(callee, Function):
        return follower.run(callee, positional, keywords)
    if isinstance(callee, Instance):
        method = attribute(follower, callee, "__call__")
        return call_object(follower, method, positional, keywords) if method else None
    if not isinstance(callee, Class) or library_base(callee):
        return None
    found = Instance(callee, {})
    start = attribute(follower, found, "__init__")
    if isinstance(start, Function):
        found.made = (positional, keywords)
        follower.run(start, positional, keywords)
        return found
    fields = fields_of(callee)
    given = dict(zip(fields, (item.value for item in positional), strict=False))
    found.attributes = {**fields, **given, **{name: one.value for name, one in keywords.items()}}
    return found


def make_class(follower: Context, node: cst.ClassDef) -> Class:
    """The class that a statement defines."""
    decorators = [
        _reference(follower, item.decorator) for item in node.decorators
    ]  # fmt: skip
    is_dataclass = any(name in _DATACLASSES for name in decorators)
    bases = [follower.value(base.value) for base in node.bases]
    kept, follower.scope = follower.scope, Scope({}, follower.scope)
    fields: dict[str, Value] = {}
    try:
        one_line = isinstance(node.body, cst.SimpleStatementSuite)
        for line in [node.body] if one_line else node.body.body:
            if isinstance(line, cst.FunctionDef):
                follower.scope.names[line.name.value] = Function(
                    line, follower.unit, kept, name=line.name.value
                )
            elif isinstance(line, (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
                fields.update(_fields(follower, line))
            else:  # a class within, or lines under a condition
                follower.block([line])
        names = {**follower.scope.names, **fields}
    finally:
        follower.scope = kept
    return Class(node.name.value, names, bases, fields if is_dataclass else None)


def _fields(
    follower: Context, line: cst.SimpleStatementLine | cst.SimpleStatementSuite
) -> Iterator[tuple[str, Value]]:
    """The attributes that a line of a class sets, with their values."""
    for part in line.body:
        if isinstance(part, cst.AnnAssign) and isinstance(part.target, cst.Name):
            name = part.target.value
            if part.value is None:
                yield name, follower.unknown(part.target, f"pass `--{name}`")
            else:
                yield name, _default(follower, follower.value(part.value))
        elif isinstance(part, cst.Assign):
            value = follower.value(part.value)
            for target in part.targets:
                follower.bind(target.target, value)
        elif isinstance(part, cst.AugAssign):
            follower.suite(cst.SimpleStatementSuite([part]))


def _default(follower: Context, value: Value) -> Value:
    """The default in ``field(default=..., default_factory=...)``."""
    if not isinstance(value, Thing) or value.made_by not in _FIELDS:
        return value
    call: Call = value.call
    made = call.value("default_factory")
    if isinstance(made, (Function, Class)):
        return call_object(follower, made, (), {}) or value
    return call.value("default", 0 if value.made_by == "pydantic.Field" else None) or value


def fields_of(of: Class) -> dict[str, Value]:
    """The fields of a dataclass with their defaults, those of its bases first."""
    found: dict[str, Value] = {}
    for base in reversed(of.bases):
        if isinstance(base, Class) and base is not of:
            found.update(fields_of(base))
    found.update(of.fields or {})
    return found


def own_arguments(of: Class) -> frozenset[str] | None:
    """The arguments that a class of the user's takes beside those of the library's class that it
    inherits; ``None`` where it has a constructor that does not hand the others on as they are."""
    if "__new__" in of.names:
        return None
    found = frozenset(of.fields or ())
    if "__init__" in of.names:
        start = of.names["__init__"]
        taken = _beside_those_handed_on(start.node) if isinstance(start, Function) else None
        if taken is None:
            return None
        found |= taken
    for base in of.bases:
        inherited = own_arguments(base) if isinstance(base, Class) and base is not of else found
        if inherited is None:
            return None
        found |= inherited
    return found


def _beside_those_handed_on(node: cst.FunctionDef | cst.Lambda) -> frozenset[str] | None:
    """The parameters of a constructor whose ``**kwargs`` go to ``super().__init__`` and nowhere
    else; ``None`` for another."""
    rest = node.params.star_kwarg
    if rest is None or isinstance(node, cst.Lambda):
        return None
    used, handed = 0, 0
    todo: list[cst.CSTNode] = [node.body]
    while todo:
        one = todo.pop()
        step()
        used += isinstance(one, cst.Name) and one.value == rest.name.value
        if isinstance(one, cst.Call) and _is_super_init(one.func):
            handed += any(
                each.star == "**" and _is_name(each.value, rest.name.value) for each in one.args
            )
        todo += one.children
    if (used, handed) != (1, 1):
        return None
    params = (*node.params.posonly_params, *node.params.params, *node.params.kwonly_params)
    return frozenset(each.name.value for each in params)


def _is_super_init(node: cst.BaseExpression) -> bool:
    """``super().__init__``."""
    if not isinstance(node, cst.Attribute) or node.attr.value != "__init__":
        return False
    return isinstance(node.value, cst.Call) and _is_name(node.value.func, "super")


def _is_name(node: cst.BaseExpression, name: str) -> bool:
    return isinstance(node, cst.Name) and node.value == name


def library_base(of: Class) -> str:
    """The dotted name of the library's class that a class inherits; empty without one."""
    for base in of.bases:
        if isinstance(base, Reference) and base.name.partition(".")[0] in _LIBRARIES:
            return base.name
        if isinstance(base, Class) and base is not of and library_base(base):
            return library_base(base)
    return ""


def _in_class(of: Class, name: str) -> Value | None:
    if name in of.names:
        return of.names[name]
    found = (_in_class(base, name) for base in of.bases if isinstance(base, Class))
    return next((value for value in found if value is not None), None)


def _decorators(function: Function) -> Sequence[cst.Decorator]:
    return function.node.decorators if isinstance(function.node, cst.FunctionDef) else ()


def _is_named(decorator: cst.Decorator, name: str) -> bool:
    return _is_name(decorator.decorator, name)


def _reference(follower: Context, node: cst.BaseExpression) -> str:
    """The dotted name of a decorator, called or not."""
    inner = node.func if isinstance(node, cst.Call) else node
    found = follower.value(inner)
    return found.name if isinstance(found, Reference) else ""
