"""Functions and callbacks of the program's own that a trainer is handed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.evaluation import asked_strategy
from lora_doctor.recipe.program.objects import (
    is_false,
    is_none,
    is_trainer,
    settings_of,
    top,
    uses_unsloth,
)
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.hook_calls import (
    CALLBACK,
    HookCall,
    callback_call,
    callback_events,
    hook_calls,
)
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Class, Function, Items, Thing, Value

#: Arguments whose function is called only when the trainer evaluates.
_RETURNS_METRICS = "compute_metrics"
_OF_EVALUATION = ("compute_metrics", "preprocess_logits_for_metrics")


@dataclass(frozen=True)
class UnfitHook:
    """A function that takes other arguments than the installed Trainer calls it with."""

    #: Its name; of a method, with its class.
    name: str
    #: Where it is defined.
    place: Place
    #: What is wrong: ``takes 1 positional argument and gets 2``.
    why: str
    #: How the installed Trainer calls it.
    call: HookCall
    #: Whether it is what it returns that does not fit, and not what it takes.
    returned: bool = False


def unfit_hooks(setup: Setup) -> Iterator[UnfitHook]:
    """Each function and each method of a callback that a trainer is handed and cannot call; none
    where another transformers is pinned, or Unsloth changes the trainers."""
    if "transformers" in pinned_otherwise(setup.program) or uses_unsloth(setup.program):
        return
    for call in setup.program.calls:
        if call.certain and is_trainer(call) and top(call.name) in ("transformers", "trl"):
            if call.heir is None:  # a class of the program's may call them itself
                yield from _functions(setup, call)
            yield from _methods(call.value("callbacks"))
        elif call.certain and call.method == "add_callback" and _trainer_has(call.receiver):
            yield from _methods(call.value("callback", 0))


def _trainer_has(value: Value | None) -> bool:
    return isinstance(value, Thing) and is_trainer(value.call)


def _functions(setup: Setup, call: Call) -> Iterator[UnfitHook]:
    """Those that are arguments of the trainer itself."""
    for name, argument in call.keywords.items():
        function = argument.value
        asked = hook_calls(name) if isinstance(function, Function) else ()
        if not asked or not isinstance(function, Function):
            continue
        if name in _OF_EVALUATION and is_none(call.value("eval_dataset")):
            continue
        place = function.unit.span(function.node).place
        if name == _RETURNS_METRICS and _surely_evaluates(setup, call):
            from lora_doctor.recipe.program.hook_results import returns_no_dictionary

            returned = returns_no_dictionary(function)
            if returned:
                shown = function.name or name
                yield UnfitHook(shown, place, f"returns {returned}", asked[0], returned=True)
                continue
        reasons = [_why_unfit(function, one) for one in asked]
        if all(reasons) and function.name:
            yield UnfitHook(function.name, place, reasons[0], asked[0])


def _surely_evaluates(setup: Setup, call: Call) -> bool:
    """Whether an evaluation is asked for, whose function is called once with all rows."""
    arguments = settings_of(call.value("args", 1))
    if arguments is None or arguments.open is not None:
        return False
    if not is_false(arguments.value("batch_eval_metrics")):
        return False
    return bool(asked_strategy(arguments)) or any(
        one.method == "evaluate"
        and one.certain
        and isinstance(one.receiver, Thing)
        and one.receiver.call is call
        for one in setup.program.calls
    )


def _methods(value: Value | None) -> Iterator[UnfitHook]:
    """The methods of callbacks: of one, or of a list of them."""
    asked = callback_call()
    if isinstance(value, Items):
        for item in value.items:
            yield from _methods(item)
    owner = _callback_class(value)
    if owner is None or asked is None:
        return
    for event in callback_events():
        method = owner.names.get(event)
        if isinstance(method, Function):
            why = _why_unfit(method, asked, bound=True)
            if why:
                place = method.unit.span(method.node).place
                yield UnfitHook(f"{owner.name}.{event}", place, why, asked)


def _callback_class(value: Value | None) -> Class | None:
    """The class of a callback that inherits the library's directly, with all its methods."""
    owner = value.call.heir if isinstance(value, Thing) else value
    if not isinstance(owner, Class) or len(owner.bases) != 1:
        return None
    base = getattr(owner.bases[0], "name", "")
    named = not isinstance(owner.bases[0], Class) and top(base) == "transformers"
    return owner if named and base.rpartition(".")[2] == CALLBACK else None


def _why_unfit(function: Function, asked: HookCall, *, bound: bool = False) -> str:
    """Why a call of the function raises; empty where it does not, or a decorator may change it."""
    import libcst as cst

    node = function.node
    if isinstance(node, cst.FunctionDef) and node.decorators:
        return ""
    parameters = node.params
    ordered = [*parameters.posonly_params, *parameters.params][1 if bound else 0 :]
    if asked.positional > len(ordered) and not isinstance(parameters.star_arg, cst.Param):
        return f"takes {len(ordered)} positional and gets {asked.positional}"
    others = (*ordered[asked.positional :], *parameters.kwonly_params)
    by_name = {one.name.value for one in others}
    missing = [name for name in asked.keywords if name not in by_name]
    if missing and parameters.star_kwarg is None:
        return f"does not take `{missing[0]}`"
    given = [one for one in others if one.default is None and one.name.value not in asked.keywords]
    return f"needs `{given[0].name.value}`, which it does not get" if given else ""
