"""Whether accumulated micro-batches give the loss of one large batch, where the loss is somebody's
own: the Trainer divides by their number, or leaves that to the loss, by release and by model.

The loss is asked once more for each micro-batch of the first step, as in a run without
accumulation, and compared with what goes into the backward pass.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.call_sites import is_of_user

#: Twice the same rows: a loss that is a mean stays, one that is a sum doubles.
_MEAN, _SUM = (0.8, 1.25), (1.7, 2.3)


def prepare(acting: Acting) -> None:
    """Once there is an accelerator."""
    acting.after("accelerate.accelerator", lambda module: _backward(acting, module))


def _backward(acting: Acting, module: ModuleType) -> None:
    def backward(original: Any, accelerator: Any, loss: Any, *more: Any, **named: Any) -> Any:
        watch = acting.accumulation
        if watch is not None and not acting.in_contract:
            watch.went_in(loss, getattr(accelerator, "gradient_accumulation_steps", 1))
        return original(accelerator, loss, *more, **named)

    acting.replaced.around(module.Accelerator, "backward", backward)


def watch(acting: Acting, trainer: Any, args: Any) -> None:
    """Look at the first optimizer step of a trainer that accumulates a loss of the user's."""
    steps = int(args.gradient_accumulation_steps)
    own = own_loss(trainer)
    if steps < 2 or own is None:
        return
    acting.accumulation = _Watch(acting, trainer, steps, own)
    trainer.compute_loss = acting.accumulation.around(trainer.compute_loss)


def own_loss(trainer: Any) -> Any:
    """The function of the user's own files that makes the loss or takes the step; ``None`` where
    libraries do."""
    kind = type(trainer)
    for found in (
        kind.compute_loss, kind.training_step, getattr(trainer, "compute_loss_func", None),
    ):  # fmt: skip
        code = getattr(found, "__code__", None)
        if code is not None and is_of_user(code.co_filename):
            return found
    return None


class _Watch:
    """``losses``: of each micro-batch what went in, what it is alone, and its labels."""

    def __init__(self, acting: Acting, trainer: Any, steps: int, own: Any) -> None:
        self._acting, self._trainer, self._steps, self._own = acting, trainer, steps, own
        self._alone: list[tuple[float, int]] = []
        self._given: list[float] = []
        self._kind = ""

    def around(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """The trainer's ``compute_loss``, asked twice."""

        def computed(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            acting = self._acting
            if acting.in_contract or acting.evaluations or len(self._alone) >= self._steps:
                return compute(model, inputs, *more, **named)
            kept = dict(inputs) if isinstance(inputs, Mapping) else None
            result = compute(model, inputs, *more, **named)
            if kept is not None:
                self._ask_apart(compute, model, kept)
            return result

        return computed

    def went_in(self, loss: Any, divisor: int) -> None:
        """What a backward pass was given, and what accelerate divides it by."""
        if len(self._given) < len(self._alone):
            self._given.append(float(loss.detach()) / max(1, divisor))
        if len(self._given) == self._steps:
            self._tell()

    def _ask_apart(self, compute: Any, model: Any, inputs: Mapping[str, Any]) -> None:
        """Ask; what follows draws the random numbers that it would have drawn."""
        import torch

        with self._acting.ours(), torch.random.fork_rng(devices=[]), self._unaccumulated():
            try:
                self._ask(compute, model, inputs)
            except Exception as error:  # noqa: BLE001 - the loss is the user's own
                self._stop(f"{type(error).__name__}: {error}"[:300])

    def _ask(self, compute: Any, model: Any, inputs: Mapping[str, Any]) -> None:
        import torch

        with torch.no_grad():
            count = _labels(inputs)
            alone = _loss(compute, model, inputs, count)
            if not self._kind:
                self._kind = _kind(alone, _loss(compute, model, _doubled(inputs), 2 * count))
        self._alone.append((alone, count))

    @contextlib.contextmanager
    def _unaccumulated(self) -> Iterator[None]:
        """As in a run whose batches are not divided."""
        args, trainer = self._trainer.args, self._trainer
        before = args.gradient_accumulation_steps
        current = getattr(trainer, "current_gradient_accumulation_steps", None)
        object.__setattr__(args, "gradient_accumulation_steps", 1)
        if current is not None:
            trainer.current_gradient_accumulation_steps = 1
        try:
            yield
        finally:
            object.__setattr__(args, "gradient_accumulation_steps", before)
            if current is not None:
                trainer.current_gradient_accumulation_steps = current

    def _stop(self, why: str) -> None:
        self._acting.accumulation = None
        self._steps = 0
        self._acting.journal.tell("accumulation", why=why)

    def _tell(self) -> None:
        total = sum(count for _, count in self._alone) or 1
        expected = sum(loss * count for loss, count in self._alone) / total
        if self._kind == "sum":
            expected = sum(loss for loss, _ in self._alone)
        code = self._own.__code__
        self._acting.journal.tell(
            "accumulation",
            steps=self._steps,
            over_rows=self._kind,
            given=sum(self._given),
            expected=expected,
            function=getattr(self._own, "__qualname__", code.co_name),
            place={"file": code.co_filename, "line": code.co_firstlineno, "function": ""},
        )
        self._acting.accumulation = None


def _loss(compute: Any, model: Any, inputs: Mapping[str, Any], count: int) -> float:
    named = {}
    parameters = inspect.signature(compute).parameters.values()
    if any(one.name == "num_items_in_batch" or one.kind is one.VAR_KEYWORD for one in parameters):
        named["num_items_in_batch"] = count
    try:
        found = compute(model, dict(inputs), **named)
    except TypeError:
        found = compute(model, dict(inputs))
    return float((found[0] if isinstance(found, tuple) else found).detach())


def _labels(inputs: Mapping[str, Any]) -> int:
    """Labels that count, as the Trainer counts them."""
    labels = inputs.get("labels")
    return 1 if labels is None else max(1, int((labels != -100).sum()))


def _doubled(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Every row twice."""
    import torch

    return {
        name: torch.cat([value, value]) if hasattr(value, "dim") and value.dim() else value
        for name, value in inputs.items()
    }


def _kind(alone: float, doubled: float) -> str:
    """What the loss does over rows: ``mean``, ``sum`` or something else."""
    ratio = doubled / alone if alone else 0.0
    if _MEAN[0] < ratio < _MEAN[1]:
        return "mean"
    return "sum" if _SUM[0] < ratio < _SUM[1] else "other"
