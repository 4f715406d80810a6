"""``lora_doctor.watch``: its options, and a watch of a model and its optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from lora_doctor.errors import InputError
from lora_doctor.live import judge
from lora_doctor.live.telling import On
from lora_doctor.live.watching import Watch

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11


class WatchOptions(TypedDict, total=False):
    """What is looked at, and what stops the job; :func:`watch` documents each."""

    on: On
    select: Sequence[str]
    ignore: Sequence[str]
    contract: bool


DEFAULTS: WatchOptions = {"on": "error", "select": (), "ignore": (), "contract": True}


def watch(
    model: Any,
    optimizer: Any,
    *,
    scheduler: Any = None,
    planned_steps: int | None = None,
    tokenizer: Any = None,
    **options: Unpack[WatchOptions],
) -> Watch:
    """Watch a training loop of your own::

        watch = lora_doctor.watch(model, optimizer)
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            watch.step(loss)
            optimizer.step()
            optimizer.zero_grad()

    Before the first forward in training mode the model, the optimizer and the batch are judged by
    the rules, as ``lora_doctor.check`` judges a loaded module; the training contract is run on a
    copy. In the first optimizer steps gradients and adapters are watched; from then on losses and
    gradients are looked at for values that are not finite. The training itself is not changed.

    Args:
        model: the model that is trained, wrapped by DDP or not.
        optimizer: the optimizer of torch, or accelerate's wrapper of it.
        scheduler: the learning rate scheduler of that optimizer; a copy of it is run.
        planned_steps: optimizer steps of the whole run; needed where there is a scheduler.
        tokenizer: what the batches were made with, for the rules about supervised tokens.
        on: the lowest severity of a finding that stops the job, by :class:`TrainingStopped`; below
            it, and with ``never``, findings are written to standard error.
        select, ignore: rule codes or prefixes of codes.
        contract: whether the training contract is run on a copy before the first step, where
            memory allows.

    Raises:
        InputError: an argument is not what it should be.
        TypeError: there is no such option.
    """
    checked = checked_options("watch", options)
    inner = _unwrapped(model)
    if not hasattr(inner, "named_modules"):
        raise InputError(f"model: is a module of torch, not {type(model).__name__}")
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if not hasattr(optimizer, "param_groups"):
        raise InputError(f"optimizer: is an optimizer of torch, not {type(optimizer).__name__}")
    training = judge.Training(inner, optimizer, scheduler, planned_steps)
    chosen = (checked["select"], checked["ignore"])
    found = Watch(training, on=checked["on"], chosen=chosen, contract=checked["contract"])
    if tokenizer is not None:
        found.tell_of_sets(SimpleNamespace(processing_class=tokenizer))
    return found


def checked_options(function: str, given: WatchOptions) -> WatchOptions:
    """The options of :func:`watch` with their defaults; ``function``: which was called.

    Raises:
        InputError: one has no value that it can have, or a rule is not there.
        TypeError: there is no such option.
    """
    unknown = [name for name in given if name not in DEFAULTS]
    if unknown:
        raise TypeError(
            f"{function}() got an unexpected keyword argument {unknown[0]!r}; there are "
            f"{', '.join(DEFAULTS)}"
        )
    found: WatchOptions = {**DEFAULTS, **given}
    if found["on"] not in get_args(On):
        raise InputError(f"on {found['on']!r}: expected one of {', '.join(get_args(On))}")
    judge.check_selection(found["select"], found["ignore"])
    return found


def _unwrapped(model: Any) -> Any:
    """The module inside DDP and ``torch.compile``, of which the hooks are: a copy that is compiled
    would be compiled anew for each thing that the training contract changes."""
    while True:
        name = type(model).__name__
        if name in ("DistributedDataParallel", "DataParallel"):
            model = model.module
        elif name == "OptimizedModule":
            model = model._orig_mod
        else:
            return model
