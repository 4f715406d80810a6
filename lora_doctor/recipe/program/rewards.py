"""The reward functions of a program's trainer, and what the trainer makes of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.code_of import code_of
from lora_doctor.recipe.program.dataset_columns import columns_of
from lora_doctor.recipe.program.evaluation import is_of_a_library
from lora_doctor.recipe.program.objects import is_none, settings_of, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.installed.reward_call import RewardCall, reward_call
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Function, Items, Value
from lora_doctor.static.script.reward_code import RewardCode, distance_rewarded, reads_written

#: Columns that a trainer hands over under other names.
_OTHERWISE = frozenset({"prompt", "completion", "completion_ids"})
_ARGUMENT = "reward_funcs"


@dataclass(frozen=True)
class RewardFunction:
    """A function that the program gives its trainer for the rewards."""

    #: Its name, or ``lambda``.
    name: str
    #: Where it is defined.
    place: Place
    #: What is read of it.
    code: RewardCode


@dataclass(frozen=True)
class RefusedReward:
    """A reward function that the trainer cannot call as it does."""

    #: The function.
    function: RewardFunction
    #: The class of the trainer.
    trainer: str
    #: Where it is made.
    trainer_place: Place
    #: Arguments that the trainer passes and the function does not take.
    not_taken: tuple[str, ...]
    #: Parameters that nobody fills.
    unfilled: tuple[str, ...]
    #: The columns of the training set; empty where they are not known.
    columns: tuple[str, ...]
    #: How the installed trainer calls it.
    call: RewardCall


def blind_rewards(setup: Setup) -> tuple[RewardFunction, ...]:
    """The functions of a trainer none of which reads what the model has written."""
    for _, functions in _rewarding(setup):
        if functions and not any(reads_written(one.code) for one in functions):
            return functions
    return ()


def distances_rewarded(setup: Setup) -> Iterator[tuple[RewardFunction, str]]:
    """Functions whose reward is a distance, which is to be small, with its text; not those of a
    trainer that weighs its rewards."""
    for call, functions in _rewarding(setup):
        settings = settings_of(call.value("args"))
        if settings is None or settings.open is not None:
            continue
        if not is_none(settings.value("reward_weights")):
            continue
        for one in functions or ():
            distance = distance_rewarded(one.code)
            if distance:
                yield one, distance


def refused_rewards(setup: Setup) -> Iterator[RefusedReward]:
    """Functions that the installed trainer calls with other arguments than they take."""
    for call, functions in _rewarding(setup):
        asked = reward_call(call.name)
        if asked is None:
            continue
        columns = columns_of(call.value("train_dataset"))
        for one in functions or ():
            found = _refused(one.code, asked, columns)
            if any(found):
                known = tuple(sorted(columns or ()))
                yield RefusedReward(one, call.method, call.place, *found, known, asked)


def _refused(
    code: RewardCode, asked: RewardCall, columns: frozenset[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that are passed and not taken, and parameters that nobody fills."""
    given = code.args
    named = [one.arg for one in (*given.args, *given.kwonlyargs)]
    passed = (*asked.names, *sorted((columns or frozenset()) - _OTHERWISE))
    not_taken = () if given.kwarg else tuple(name for name in passed if name not in named)
    if columns is None or given.posonlyargs:
        return not_taken, ()
    defaults = [one.arg for one in given.args[len(given.args) - len(given.defaults) :]]
    defaults += [one.arg for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)
                 if value is not None]  # fmt: skip
    filled = {*passed, *asked.others, *defaults}
    return not_taken, tuple(name for name in named if name not in filled)


def _rewarding(setup: Setup) -> Iterator[tuple[Call, tuple[RewardFunction, ...] | None]]:
    """The trainers of TRL that are given reward functions; ``None`` where one of these is no
    function of the program's."""
    for call in setup.program.calls:
        if not is_of_a_library(call) or top(call.name) != "trl" or not call.certain:
            continue
        given = call.value(_ARGUMENT, 1)
        if call.open is not None or given is None:
            continue
        values = given.items if isinstance(given, Items) and given.open is None else [given]
        functions = [_function(one) for one in values]
        known = tuple(one for one in functions if one is not None)
        yield call, known if len(known) == len(functions) else None


def _function(value: Value) -> RewardFunction | None:
    """A plain function: what is around a decorated one or a method may take other arguments."""
    if not isinstance(value, Function) or value.owner is not None:
        return None
    code = code_of(value)
    if not isinstance(code, (ast.FunctionDef, ast.Lambda)) or getattr(code, "decorator_list", []):
        return None
    return RewardFunction(value.name or "lambda", value.unit.span(value.node).place, code)
