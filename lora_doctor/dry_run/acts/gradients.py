"""What arrives at the optimizer in its first steps: a run whose gradients are all 0 trains nothing
and raises nothing, and neither does one whose gradients are never set back to 0."""

from __future__ import annotations

import atexit
import math
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts import sharding
from lora_doctor.dry_run.acts.acting import STEPS, Acting
from lora_doctor.guest.call_sites import caller


def prepare(acting: Acting) -> None:
    """Once torch has optimizers."""
    acting.after("torch.optim.optimizer", lambda module: _optimizers(acting, module))


def _optimizers(acting: Acting, module: ModuleType) -> None:
    watches: dict[int, _Watch] = {}

    def stepped(optimizer: Any, arguments: Any, named: Any) -> None:
        if acting.in_contract or _has_copies(acting, optimizer):
            return
        if id(optimizer) not in watches:
            watches[id(optimizer)] = _Watch(acting, optimizer)
        watches[id(optimizer)].look()

    cleared: list[int] = []

    def clears(original: Any, optimizer: Any, *arguments: Any, **named: Any) -> Any:
        if not (acting.steps or cleared or acting.in_contract):
            count = len(_with_gradient(acting))
            cleared.extend([count] if count else [])
        return original(optimizer, *arguments, **named)

    module.register_optimizer_step_post_hook(stepped)
    acting.replaced.around(module.Optimizer, "zero_grad", clears)
    atexit.register(lambda: _tell_without_step(acting, cleared))


def _tell_without_step(acting: Acting, cleared: list[int]) -> None:
    """Gradients that nobody has made a step of, when the command comes to its end by itself.
    ``cleared``: how many tensors had one that an optimizer has cleared."""
    if acting.steps or acting.seen("ended") or acting.seen("error"):
        return
    count = len(_with_gradient(acting)) or sum(cleared)
    if count:
        acting.journal.tell("no_step", tensors=count, cut=bool(acting.seen("cut_short")))


def _with_gradient(acting: Acting) -> list[Any]:
    """The tensors of adapters that have a gradient that is not 0."""
    return [one for one in _of_adapters(acting) if one.grad is not None and bool(one.grad.any())]


def _has_copies(acting: Acting, optimizer: Any) -> bool:
    """Whether the optimizer holds shards or copies: a process then has a part of each gradient."""
    wrapped = any(one["by"] == "DeepSpeed" for one in acting.seen("wrapped"))
    return wrapped or bool(sharding.unsharded(acting).classes)


class _Watch:
    """The steps of one optimizer. ``_kept``: the gradient of one tensor after the last step."""

    def __init__(self, acting: Acting, optimizer: Any) -> None:
        self._acting, self._optimizer = acting, optimizer
        self._steps = 0
        self._adapters, self._others = _trainable(acting, optimizer)
        self._with_gradient: set[int] = set()
        self._others_moved: set[int] = set()
        self._not_finite: set[int] = set()
        self._largest = 0.0
        self._kept: Any = None
        self._handle: Any = None
        self._accumulates = False

    def look(self) -> None:
        """After a step, whose gradients are still there."""
        if self._steps >= STEPS or not self._adapters:
            return
        self._steps += 1
        with self._acting.ours():
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - tensors of any kind; the user's run goes on
                self._adapters = []
                reason = f"{type(error).__name__}: {error}"[:300]
                self._acting.journal.tell("no_gradients", reason=reason)
                return
        place = caller()
        self._acting.journal.tell(
            "step_gradients",
            of=id(self._optimizer),
            steps=self._steps,
            adapters=len(self._adapters),
            with_gradient=len(self._with_gradient),
            largest=self._largest,
            not_finite=len(self._not_finite),
            others_moved=len(self._others_moved),
            kept=self._accumulates,
            generated=self._acting.has_generated,
            place=None if place is None else vars(place),
        )

    def _look(self) -> None:
        import torch

        with torch.no_grad():
            for parameter in self._adapters:
                if parameter.grad is not None and parameter.grad.numel():
                    self._with_gradient.add(id(parameter))
                    most = float(parameter.grad.detach().abs().max())
                    if math.isfinite(most):
                        self._largest = max(self._largest, most)
                    else:
                        self._not_finite.add(id(parameter))
            for parameter in self._others:
                if parameter.grad is not None and bool((parameter.grad != 0).any()):
                    self._others_moved.add(id(parameter))
        self._watch_one()

    def _watch_one(self) -> None:
        """Whether the gradient of this step is there, number for number, when the backward of the
        next begins to add to it."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._steps >= STEPS:
            return
        there = (one for one in self._adapters if one.grad is not None and bool(one.grad.any()))
        parameter = next(there, None)
        if parameter is None:
            return
        self._kept = parameter.grad.detach().clone()
        self._handle = parameter.register_hook(lambda gradient: self._arrives(parameter))

    def _arrives(self, parameter: Any) -> None:
        import torch

        kept, self._kept = self._kept, None
        if kept is not None and parameter.grad is not None and not self._acting.in_contract:
            self._accumulates |= bool(torch.equal(parameter.grad, kept))


def _trainable(acting: Acting, optimizer: Any) -> tuple[list[Any], list[Any]]:
    """Trainable tensors of adapters that the optimizer holds, and the other ones that it holds."""
    of_adapters = {id(one) for one in _of_adapters(acting)}
    held = [one for group in optimizer.param_groups for one in group["params"] if one.requires_grad]
    ours = [one for one in held if id(one) in of_adapters]
    return ours, [one for one in held if id(one) not in of_adapters]


def _of_adapters(acting: Acting) -> list[Any]:
    """The tensors of all adapters of this process."""
    from lora_doctor.contract.adapters import every_parameter, find_adapters

    models = sharding.unsharded(acting).models()
    return [one.tensor for model in models for one in every_parameter(find_adapters(model))]
