"""Reward functions of trainers that let the model write (GRPO, RLOO): whether the completions of
one prompt get different rewards. Where they all get the same there is nothing to learn.

A small model with random weights writes noise, which a strict function may well give the same
reward for; so what a function reads is looked up in its code as well.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.static.script.reward_code import reads_written

_WATCHED = "_lora_doctor_watched"


def watch(acting: Acting, trainer: Any) -> None:
    """Look at what the reward functions of a trainer return; nothing where it has none, or where
    one is a model or runs beside others."""
    functions = getattr(trainer, "reward_funcs", None)
    if not isinstance(functions, list) or not functions:
        return
    if not all(inspect.isfunction(_inner(one)) for one in functions):
        return
    if any(inspect.iscoroutinefunction(one) for one in functions):
        return
    if any(hasattr(one, _WATCHED) for one in functions):
        return  # the trainer trains once more
    seen = _Seen(acting, [_described(one) for one in functions])
    trainer.reward_funcs = [seen.around(one, number) for number, one in enumerate(functions)]


def _inner(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _described(function: Any) -> dict[str, Any]:
    inner = _inner(function)
    code = inner.__code__
    return {
        "name": str(getattr(inner, "__name__", "reward")),
        "blind": not reads_completions(inner),
        "file": code.co_filename,
        "line": code.co_firstlineno,
    }


@dataclass
class _Seen:
    """``calls``: of the functions on one batch, the rewards of each."""

    acting: Acting
    functions: list[dict[str, Any]]
    rewards: dict[int, list[float | None]] = field(default_factory=dict)

    def around(self, function: Callable[..., Any], number: int) -> Callable[..., Any]:
        """The function, whose results are looked at."""

        @functools.wraps(function)
        def rewarded(*arguments: Any, **named: Any) -> Any:
            given = function(*arguments, **named)
            if isinstance(given, Sequence) and not self.acting.evaluations:
                try:
                    self._keep(number, given, named)
                except Exception as error:  # noqa: BLE001 - what the trainer makes of it is its own
                    reason = f"{type(error).__name__}: {error}"[:300]
                    self.acting.journal.tell("no_rewards", reason=reason)
            return given

        setattr(rewarded, _WATCHED, True)
        return rewarded

    def _keep(self, number: int, given: Sequence[Any], named: Mapping[str, Any]) -> None:
        """The rewards of one function; of the last one of a batch all are told."""
        self.rewards[number] = [_number(one) for one in given]
        if len(self.rewards) == len(self.functions):
            rewards, self.rewards = self.rewards, {}
            self._tell(rewards, named.get("prompts"), named.get("completions"))

    def _tell(self, given: dict[int, list[float | None]], prompts: Any, completions: Any) -> None:
        """Compare the completions of each prompt, which stand one after another."""
        rewards = list(zip(*given.values(), strict=False))
        if not isinstance(prompts, list) or not isinstance(completions, list):
            return
        if not len(prompts) == len(completions) == len(rewards):
            return
        groups = [rows for rows in _groups(prompts) if len(rows) > 1]
        if not groups:
            return
        # Trainers add up what there is: nothing is 0.
        flat = [one for row in rewards for one in row if one is not None] or [0.0]
        self.acting.journal.tell(
            "rewards",
            functions=self.functions,
            prompts=len(groups),
            alike=sum(_same([rewards[n] for n in rows]) for rows in groups),
            same_completions=sum(_same([completions[n] for n in rows]) for rows in groups),
            least=min(flat),
            most=max(flat),
        )


def _number(value: Any) -> float | None:
    """``None``, and NaN for it, stand for no reward of this function."""
    number = float("nan") if value is None else float(value)
    return None if number != number else number


def _groups(prompts: list[Any]) -> Iterator[list[int]]:
    """Positions of prompts that are the same and stand together."""
    for _, rows in itertools.groupby(range(len(prompts)), key=lambda n: repr(prompts[n])):
        yield list(rows)


def _same(items: list[Any]) -> bool:
    return all(one == items[0] for one in items)


# --- what a function reads ------------------------------------------------------------------------


def reads_completions(function: Any) -> bool:
    """Whether the code of a reward function reads what the model has written. What cannot be told
    is taken for reading; to count the completions is not reading them."""
    if hasattr(function, "__wrapped__"):
        return True  # what is around it may read them
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
        return True
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.Lambda))
        and getattr(node, "name", "<lambda>") == function.__name__
    ]
    return len(found) != 1 or reads_written(found[0])
