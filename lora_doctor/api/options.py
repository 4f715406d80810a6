"""The options of the Python API: stated once, with their defaults, and put into the signature of
each function that takes them."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypedDict, TypeVar, get_type_hints

from lora_doctor.engine.limits import Limits
from lora_doctor.limits import DATA_ROWS
from lora_doctor.recipe.files.prescription import Prescription
from lora_doctor.results.depth import STEPS, Depth
from lora_doctor.results.samples import Samples
from lora_doctor.sandbox.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")


class CaseOptions(TypedDict, total=False):
    """What is looked at and how it is run; :func:`check` documents each."""

    depth: Depth
    revision: str | None
    format: str | None
    trust_remote_code: bool
    device: str
    steps: int
    limits: Limits | None
    batches: Sequence[Mapping[str, Any]] | None
    prescription: str | os.PathLike[str] | Prescription | None
    adapter: str | os.PathLike[str] | None
    script_arguments: Sequence[str]
    progress: Callable[[str], None] | None
    worker: Worker | None


class CheckOptions(CaseOptions, total=False):
    """``CaseOptions``, what only rules read, which rules are run, and whether a skipped one leaves
    the answer undetermined."""

    optimizer: Any
    scheduler: Any
    planned_steps: int | None
    memory: bool
    data: str | os.PathLike[str] | None
    eval_data: str | os.PathLike[str] | None
    rows: int
    samples: Samples
    budgets: Mapping[str, Any] | None
    select: Sequence[str]
    ignore: Sequence[str]
    rules: Sequence[str | os.PathLike[str]]
    strict: bool


DEFAULTS: CheckOptions = {
    "depth": "tiny",
    "revision": None,
    "format": None,
    "trust_remote_code": False,
    "device": "auto",
    "steps": STEPS,
    "limits": None,
    "batches": None,
    "optimizer": None,
    "scheduler": None,
    "planned_steps": None,
    "memory": False,
    "data": None,
    "eval_data": None,
    "rows": DATA_ROWS,
    "samples": "people",
    "budgets": None,
    "prescription": None,
    "adapter": None,
    "script_arguments": (),
    "progress": None,
    "worker": None,
    "select": (),
    "ignore": (),
    "rules": (),
    "strict": False,
}


def takes(options: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The function with these options in its signature, and a TypeError for any other that names
    the function that was called and what was probably meant."""
    types = get_type_hints(options)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        written = inspect.signature(function, eval_str=False)
        parameters = [one for one in written.parameters.values() if one.kind is not one.VAR_KEYWORD]
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=kind
            )
            for name, kind in types.items()
        ]
        known = [one.name for one in parameters]

        @functools.wraps(function)
        def call(*arguments: P.args, **given: P.kwargs) -> R:
            for name in given:
                if name not in known:
                    raise TypeError(_unknown_option(function.__name__, name, known))
            return function(*arguments, **given)

        # For `get_type_hints`, which has no Unpack before Python 3.11.
        own = {key: kind for key, kind in function.__annotations__.items() if key != "options"}
        call.__annotations__ = {**own, **types}
        call.__signature__ = written.replace(parameters=parameters)  # type: ignore[attr-defined]
        return call

    return decorate


def _unknown_option(function: str, name: str, known: Sequence[str]) -> str:
    """One line: no such option, and what was probably meant, an option or a key of the recipe."""
    import difflib

    from lora_doctor.recipe.keys import ALIASES, known_keys

    keys = known_keys() | ALIASES.keys()
    wrong = f"lora_doctor.{function}() got an unexpected keyword argument {name!r}"
    if name in DEFAULTS:
        return f"{wrong}: only check and fix take it; help(lora_doctor.{function}) lists its own"
    near = difflib.get_close_matches(name, [*known, *keys - set(known)], n=1)
    if not near:
        return f"{wrong}; help(lora_doctor.{function}) lists them"
    if near[0] in known:
        return f"{wrong}; did you mean {near[0]!r}?"
    return f"{wrong}; {near[0]!r} is a key of the recipe: {function}(model, {{{near[0]!r}: ...}})"
