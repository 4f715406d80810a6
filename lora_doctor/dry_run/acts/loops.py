"""Loops that somebody wrote: counted by the steps of their optimizers, ended by their loaders."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import contract
from lora_doctor.dry_run.acts.acting import STEPS, Acting
from lora_doctor.dry_run.acts.batch_rows import plain_rows
from lora_doctor.guest.call_sites import caller

#: Epochs of a loop that go on after the end with one batch each, so that nothing of the user's
#: divides by a number of batches that is 0.
_EPOCHS_AFTER = 12
#: Optimizer steps after the end that loops take without asking a loader.
_STEPS_AFTER = 16
#: Batches of a loader that no optimizer step follows: an evaluation.
_BATCHES = 8
#: Of those that gradients are computed for: they may be accumulated.
_ACCUMULATED = 1024
#: Batches of a trainer that are told as its collator has made them.
_TOLD = 4
#: Steps of a scheduler after which its rates have shown what they are.
_PLANNED = 1000


class _Loops:
    """``current``: the loader that gave the last batch. ``training``: those that training draws on.
    ``epochs_after``: how often one of them was started after the end. ``optimizers``: those that
    have taken a step."""

    def __init__(self) -> None:
        self.current: Any = None
        self.training: weakref.WeakSet[Any] = weakref.WeakSet()
        self.epochs_after = 0
        self.optimizers: list[Any] = []
        self.schedulers: dict[int, Any] = {}
        self.schedulers_stepped: weakref.WeakSet[Any] = weakref.WeakSet()

    def stepped(self, optimizer: Any) -> bool:
        """Note an optimizer's step; whether it is its first."""
        is_new = not any(one is optimizer for one in self.optimizers)
        if is_new:
            self.optimizers.append(optimizer)
        return is_new


def prepare(acting: Acting) -> None:
    """Once torch has optimizers and loaders."""
    loops = _Loops()
    acting.after("torch.optim.optimizer", lambda m: _optimizers(acting, m, loops))
    acting.after("torch.optim.lr_scheduler", lambda m: _schedulers(acting, m, loops))
    acting.after("torch.utils.data.dataloader", lambda m: _loaders(acting, m, loops))


def _schedulers(acting: Acting, module: ModuleType, loops: _Loops) -> None:
    owner = getattr(module, "LRScheduler", None) or module._LRScheduler

    def made(original: Any, scheduler: Any, optimizer: Any, *more: Any, **named: Any) -> None:
        with acting.ours():  # the constructor takes a step of its own
            original(scheduler, optimizer, *more, **named)
        if not acting.in_contract:
            loops.schedulers[id(optimizer)] = scheduler

    def stepped(original: Any, scheduler: Any, *more: Any, **named: Any) -> Any:
        if not acting.in_contract and scheduler not in loops.schedulers_stepped:
            loops.schedulers_stepped.add(scheduler)
            acting.journal.tell("scheduler_stepped", of=id(scheduler))
        return original(scheduler, *more, **named)

    acting.replaced.around(owner, "__init__", made)
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, owner) and "step" in vars(kind):
            acting.replaced.around(kind, "step", stepped)


def _optimizers(acting: Acting, module: ModuleType, loops: _Loops) -> None:
    def stepped(optimizer: Any, arguments: Any, named: Any) -> None:
        if acting.in_contract:
            return
        acting.steps += 1
        if acting.in_trainer:
            return
        is_new = loops.stepped(optimizer)
        if loops.current is not None:
            loops.training.add(loops.current)
        if acting.steps == 1:
            place = caller()
            acting.journal.tell(
                "train",
                by="a loop",
                optimizer=type(optimizer).__name__,
                place=None if place is None else vars(place),
            )
        if acting.steps == STEPS or (is_new and acting.steps > STEPS):
            _tell_optimizers(acting, optimizer, loops)
        if acting.steps == STEPS:
            acting.journal.tell("trained", by="a loop", steps=acting.steps)
        if acting.steps >= STEPS and not loops.training:
            acting.end("the loop takes its data from no DataLoader: what follows its third step")
        if acting.steps >= STEPS + _STEPS_AFTER:
            acting.end("the loop goes on after its loaders have ended: what follows it")

    module.register_optimizer_step_post_hook(stepped)


def _tell_optimizers(acting: Acting, optimizer: Any, loops: _Loops) -> None:
    """What the optimizers hold that train the model together; ``optimizer``: the last that took a
    step. A schedule is followed where there is one optimizer."""
    if len(loops.optimizers) > 1:
        contract.read_optimizer(acting, loops.optimizers, None, None)
        return
    scheduler = loops.schedulers.get(id(optimizer))
    contract.read_optimizer(acting, optimizer, scheduler, _PLANNED)
    _tell_standing_schedule(acting, optimizer, scheduler, loops)


def _tell_standing_schedule(acting: Acting, optimizer: Any, scheduler: Any, loops: _Loops) -> None:
    """What the optimizer holds as it is, where the loop has not stepped its scheduler: it may do so
    after an epoch, or never."""
    if scheduler is None or scheduler in loops.schedulers_stepped:
        return
    if type(scheduler).step.__module__.startswith("torch."):
        contract.read_optimizer(
            acting, optimizer, None, None, kind="optimizer_unscheduled", of=id(scheduler)
        )


def _loaders(acting: Acting, module: ModuleType, loops: _Loops) -> None:
    def iterated(original: Any, loader: Any) -> Any:
        inner = original(loader)
        return inner if acting.in_contract else _Few(acting, loops, loader, inner)

    acting.replaced.around(module.DataLoader, "__iter__", iterated)


class _Few:
    """A loader's iterator that comes to its end early."""

    def __init__(self, acting: Acting, loops: _Loops, loader: Any, inner: Any) -> None:
        self._acting, self._loops = acting, loops
        self._loader, self._inner = loader, inner
        self._given = 0
        self._steps = acting.steps
        size = getattr(loader, "batch_size", None) or 1
        self._most = max(_BATCHES, math.ceil(acting.rows / size))
        if acting.ended and loader in loops.training and not acting.in_trainer:
            loops.epochs_after += 1
            if loops.epochs_after > _EPOCHS_AFTER:
                acting.end("the loop goes on after its loaders have ended: what follows it")

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._is_over():
            raise StopIteration
        batch = next(self._inner)
        self._given += 1
        self._loops.current = self._loader
        if self._acting.in_trainer and not self._acting.evaluations and self._given <= _TOLD:
            self._tell(batch)
        return batch

    def _tell(self, batch: Any) -> None:
        """What the trainer's collator has made, before the trainer changes it."""
        if isinstance(batch, Mapping) and self._acting.steps < STEPS:
            self._acting.journal.tell("loaded_rows", rows=plain_rows(batch))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _is_over(self) -> bool:
        import torch

        if not self._given:
            return False
        if self._acting.evaluations:
            return self._given >= self._most
        if self._acting.in_trainer and torch.is_grad_enabled():
            return False  # a trainer counts its own steps
        if self._acting.ended and self._loader in self._loops.training:
            return True
        if self._acting.steps > self._steps:
            return False
        return self._is_enough(torch.is_grad_enabled())

    def _is_enough(self, trains: bool) -> bool:
        """Whether a loader that no step has followed so far is cut short."""
        if self._given < (_ACCUMULATED if trains else self._most):
            return False
        if trains:
            self._acting.journal.tell("cut_short")
        return True
