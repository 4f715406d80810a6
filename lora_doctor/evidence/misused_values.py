"""Single values handed to the installed config of PEFT, or to the arguments of a Trainer, and then
used: dataclasses check no types, so that a number in quotes fails where it is first reckoned with.

Runs in a child process. A value is tried where it is of another type than the class declares, or is
none that its key can have. Each is used in two steps of training a layer; what fails there and does
not with the class's own default is an answer, and nothing else is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_doctor.evidence.refused_arguments import class_of, here, release, text_of
from lora_doctor.results.misused_values import MisusedValue, MisusedValues

_WIDTH = 8
_STEPS = 2
#: Without a finite number of steps these decide nothing.
_EPOCHS = "num_train_epochs"
_PLAIN = (int, float, bool, str, type(None))


class _FailedError(Exception):
    """What a library raised, with what was being done."""

    def __init__(self, when: str, error: Exception | None) -> None:
        super().__init__(when)
        self.when, self.error = when, error


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    values: Sequence[Mapping[str, Any]],
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A :class:`MisusedValues` as JSON.

    Args:
        source, recipe, patches: as every task has them; not used.
        values: ``{"name", "key", "value", "beside", "impossible"}`` of each value: the dotted name
            of the class, the argument, what it gets, other arguments that decide whether it is
            used, and whether it is of the right type and cannot be all the same.
    """
    found: list[MisusedValue] = []
    tried = 0
    works: dict[tuple[str, bool], bool] = {}
    for number, one in enumerate(values):
        cls = class_of(one["name"])
        kinds = _declared(cls, one["key"]) if cls is not None else None
        fits = kinds is None or _fits(one["value"], kinds)
        if cls is None or (fits and not one["impossible"]):
            continue
        tried += 1
        run = _of_adapter if one["name"].startswith("peft.") else _of_trainer
        beside = {} if one["key"] in one["beside"] else one["beside"]
        control = (f"{one['name']} {sorted(beside)}", one["key"] == _EPOCHS)
        if control not in works:
            works[control] = _failure(run, cls, beside, "") is None
        failed = _failure(run, cls, {**beside, one["key"]: one["value"]}, one["key"])
        if works[control] and failed is not None:
            said = "" if failed.error is None else " ".join(text_of(failed.error).split())
            found.append(
                MisusedValue(
                    number, cls.__name__, release(one["name"].partition(".")[0]),
                    "" if fits or kinds is None else " or ".join(_words(kinds)), failed.when,
                    "" if failed.error is None else type(failed.error).__name__, said[:300],
                )
            )  # fmt: skip
    return dataclasses.asdict(MisusedValues(tuple(found), tried))


def _declared(cls: Any, key: str) -> tuple[Any, ...] | None:
    """The types that the class declares for an argument; ``None`` where they do not say what fits:
    a name that only type checkers import, or something that is made of a text."""
    if not any(field.name == key and field.init for field in dataclasses.fields(cls)):
        return None
    try:
        hint = typing.get_type_hints(cls)[key]
    except (NameError, KeyError, TypeError):
        return None
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    return kinds if all(kind in _PLAIN for kind in kinds) else None


def _fits(value: Any, kinds: tuple[Any, ...]) -> bool:
    if isinstance(value, bool) or value is None:
        return type(value) in kinds or (value is not None and int in kinds)
    if isinstance(value, int):
        return bool({int, float, bool} & set(kinds))
    return type(value) in kinds


def _words(kinds: tuple[Any, ...]) -> Iterator[str]:
    return (kind.__name__ for kind in kinds if kind is not type(None))


def _failure(
    run: Callable[[Any, dict[str, Any], str], None], cls: Any, values: dict[str, Any], key: str
) -> _FailedError | None:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run(cls, values, key)
    except _FailedError as failed:
        return failed
    return None


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    try:
        yield
    except _FailedError:
        raise
    except Exception as error:
        raise _FailedError(what, error) from error


def _layer() -> Any:
    import torch

    class Layer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(_WIDTH, _WIDTH)

        def forward(self, x: Any, labels: Any = None) -> Any:
            return {"loss": (self.linear(x) - labels).pow(2).mean()}

    torch.manual_seed(0)
    return Layer()


def _of_adapter(cls: Any, values: dict[str, Any], key: str) -> None:
    import peft
    import torch

    with _doing("making"):
        config = cls(**{"target_modules": ["linear"], **values})
    with _doing("adding the adapter"):
        model = peft.get_peft_model(_layer(), config)
    with _doing("training"):
        model.train()
        given = torch.ones(1, _WIDTH)
        model(x=given, labels=given)["loss"].backward()


def _of_trainer(cls: Any, values: dict[str, Any], key: str) -> None:
    import transformers

    with tempfile.TemporaryDirectory(prefix="lora-doctor-") as folder:
        given: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True}
        given |= {"max_steps": _STEPS, **values, **here(cls, folder)}
        if key == _EPOCHS:
            given["max_steps"] = -1
        with _doing("making"):
            arguments = cls(**given)
        row = {"x": [1.0] * _WIDTH, "labels": [0.0] * _WIDTH}
        trainer = None
        with _doing("training"):
            trainer = transformers.Trainer(_layer(), arguments, train_dataset=[row] * 16)
            trainer.train()
        if trainer is not None and trainer.state.global_step == 0:
            raise _FailedError("training", None)
