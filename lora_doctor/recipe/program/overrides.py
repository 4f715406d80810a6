"""Methods of the Trainer that a class of the program's own replaces."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.objects import is_trainer, top
from lora_doctor.recipe.program.pins import unmet
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.trainer_calls import STEP, OwnCall, step_calls
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Class, Function


@dataclass(frozen=True)
class NarrowOverride:
    """A method that takes less than the Trainer gives it."""

    #: The class.
    owner: str
    #: The method.
    method: str
    #: Where it is defined.
    place: Place
    #: Arguments by name that it does not take.
    not_taken: tuple[str, ...]
    #: How the installed Trainer calls it.
    call: OwnCall


def narrow_overrides(setup: Setup) -> Iterator[NarrowOverride]:
    """Each method that the step of the installed Trainer calls with other arguments than it takes;
    not of a class with a step of its own, nor where another release is pinned."""
    pinned = {pin.package for pin, _ in unmet(setup.program)}
    if "transformers" in pinned or any(top(one.name) == "unsloth" for one in setup.program.calls):
        return
    seen: set[int] = set()
    for call in setup.program.calls:
        owner = _heir(call)
        if owner is None or id(owner) in seen or STEP in owner.names:
            continue
        seen.add(id(owner))
        for asked in step_calls():
            method = owner.names.get(asked.method)
            found = _not_taken(method, asked) if isinstance(method, Function) else ()
            if found and isinstance(method, Function):
                place = method.unit.span(method.node).place
                yield NarrowOverride(owner.name, asked.method, place, found, asked)


def _heir(call: Call) -> Class | None:
    """The class of the program's that is made, which inherits a Trainer of a library directly."""
    if call.heir is None or not is_trainer(call) or not call.certain:
        return None
    library = top(call.name) in ("transformers", "trl")
    return call.heir if library and len(call.heir.bases) == 1 else None


def _not_taken(method: Function, asked: OwnCall) -> tuple[str, ...]:
    """Names that a method does not take; what is around a decorated one may take them."""
    try:
        tree = ast.parse(textwrap.dedent(method.unit.span(method.node).text).strip())
    except (SyntaxError, ValueError):
        return ()
    node = next((one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)), None)
    if node is None or node.decorator_list or node.args.kwarg is not None:
        return ()
    taken = {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}
    return tuple(name for name in asked.keywords if name not in taken)
