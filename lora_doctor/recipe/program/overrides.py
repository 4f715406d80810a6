"""Methods of the Trainer that a class of the program's own replaces."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_doctor.recipe.program.code_of import code_of
from lora_doctor.recipe.program.evaluation import asked_strategy
from lora_doctor.recipe.program.objects import Settings, is_trainer, settings_of, top, uses_unsloth
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.trainer_calls import (
    OwnCall,
    calls_inherited,
    replaced_by,
    training_calls,
)
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import (
    Call,
    Class,
    Function,
    NotPlainError,
    Reference,
    Value,
    plain,
)

#: What says when a thing is due, and every how many steps.
_WHEN = {"log": ("logging_strategy", "logging_steps"), "save": ("save_strategy", "save_steps")}


@dataclass(frozen=True)
class NarrowOverride:
    """A method that takes something else than the Trainer gives it."""

    #: The class.
    owner: str
    #: The method.
    method: str
    #: Where it is defined.
    place: Place
    #: Arguments that it does not take.
    not_taken: tuple[str, ...]
    #: Those that it needs and is not given.
    not_given: tuple[str, ...]
    #: How the installed Trainer calls it.
    call: OwnCall


def narrow_overrides(setup: Setup) -> Iterator[NarrowOverride]:
    """Each method that a training with the installed Trainer calls in a way in which it cannot be
    called; not where another release is pinned."""
    if "transformers" in pinned_otherwise(setup.program) or uses_unsloth(setup.program):
        return
    seen: set[Place] = set()
    for call in setup.program.calls:
        own = _own_methods(call)
        for found in _narrow(call, own) if own else ():
            if found.place not in seen:
                seen.add(found.place)
                yield found


def _own_methods(call: Call) -> dict[str, tuple[str, Value]]:
    """Name to class and method, of the program's heir of a Trainer that a call makes; none where a
    class is not read."""
    if call.heir is None or not is_trainer(call) or not call.certain:
        return {}
    return _methods(call.heir) if top(call.name) in ("transformers", "trl") else {}


def _methods(owner: Class) -> dict[str, tuple[str, Value]]:
    """Those of a class and of the program's classes that it inherits, the nearest first."""
    found: dict[str, tuple[str, Value]] = {}
    waiting: list[Value] = [owner]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, Class) and len(found) < _MOST:
            for name, value in one.names.items():
                found.setdefault(name, (one.name, value))
            waiting = [*one.bases, *waiting]
        elif not isinstance(one, Reference) or not one.name.endswith(("Trainer", "ABC", "object")):
            return {}
    return found


#: Methods of a class: one that inherits itself ends here.
_MOST = 1000


def _narrow(call: Call, own: Mapping[str, tuple[str, Value]]) -> Iterator[NarrowOverride]:
    replaced = {name for name, (_, value) in own.items() if not _runs_inherited(value)}
    if top(call.name) == "trl":
        replaced |= replaced_by(call.name)
    arguments = settings_of(call.value("args", 1))
    asked: dict[tuple[str, str], list[OwnCall]] = {}
    for one in training_calls(frozenset(replaced)):
        if one.method in own and all(_is_due(what, arguments) for what in one.due):
            asked.setdefault((one.caller, one.method), []).append(one)
    for (_, method), calls in asked.items():
        owner, value = own[method]
        unfit = [_unfit(value, one) for one in calls]
        if isinstance(value, Function) and all(unfit):
            place = value.unit.span(value.node).place
            not_taken, not_given = unfit[0] or ((), ())
            yield NarrowOverride(owner, method, place, not_taken, not_given, calls[0])


def _is_due(what: str, arguments: Settings | None) -> bool:
    """Whether the arguments say that a run comes to it."""
    if arguments is None or arguments.open is not None:
        return False
    if what == "evaluate":
        return bool(asked_strategy(arguments))
    strategy, steps = (_constant(arguments.value(name)) for name in _WHEN[what])
    if strategy in ("epoch", "no"):
        return bool(strategy == "epoch")
    end = _constant(arguments.value("max_steps"))
    return isinstance(steps, (int, float)) and not (
        isinstance(end, int) and 0 < end < steps
    )  # fmt: skip


def _constant(value: Value | None) -> object:
    try:
        found = plain(value)
    except NotPlainError:
        return None
    return str(found).rpartition(".")[2].lower() if isinstance(found, str) else found


def _runs_inherited(value: Value) -> bool:
    node = _definition(value)
    return node is not None and calls_inherited(node)


def _definition(value: Value) -> ast.FunctionDef | None:
    code = code_of(value) if isinstance(value, Function) else None
    return code if isinstance(code, ast.FunctionDef) else None


def _is_decorated(function: Function) -> bool:
    return bool(getattr(function.node, "decorators", ()))


def _unfit(value: Value, asked: OwnCall) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """What a method does not take, and what it needs besides; ``None`` where the call fits, and of
    a decorated one, since what is around it may take everything."""
    node = _definition(value)
    if node is None or (isinstance(value, Function) and _is_decorated(value)):
        return None
    every = [one.arg for one in (*node.args.posonlyargs, *node.args.args)][1:]
    first = len(node.args.posonlyargs) - 1
    filled = every[: len(asked.positional)]
    by_name = {*every[max(first, len(filled)) :], *(one.arg for one in node.args.kwonlyargs)}
    more = asked.positional[len(every) :] if node.args.vararg is None else ()
    unknown = [
        one for one in asked.keywords if one not in by_name and node.args.kwarg is None
    ]  # fmt: skip
    needed = every[: len(every) - len(node.args.defaults)] + [
        one.arg
        for one, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if default is None
    ]
    missing = [one for one in needed if one not in filled and one not in asked.keywords]
    not_taken = (*more, *unknown)
    return (not_taken, tuple(missing)) if not_taken or missing else None
