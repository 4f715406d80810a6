"""The part of the training contract that trains: gradients, optimizer steps, what moved."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from lora_doctor.contract import adapters as found
from lora_doctor.contract.backward import BackwardLocator
from lora_doctor.contract.locator import Locator, NonFinite, first_bad_gradient
from lora_doctor.contract.measure import (
    buffer_sums,
    changed,
    frozen_sums,
    is_finite,
    kind_of,
    loss_of,
    measured_loss,
)
from lora_doctor.contract.observers import Observers
from lora_doctor.contract.precision import SCALE, Precision
from lora_doctor.contract.recomputing import ended_where_it_begins_again
from lora_doctor.contract.recorder import Recorder, Stop
from lora_doctor.model.peft_models import own_config
from lora_doctor.nn.copying import random_state
from lora_doctor.nn.shards import held_here
from lora_doctor.text import clean_path

#: Rounds over all batches after which a loss that has not fallen is called failed.
MORE_ROUNDS = 24
NAMES_SHOWN = 4
#: Up to the one at which a Trainer's scaler begins.
_LARGER_SCALES = (64 * SCALE, 1024 * SCALE)


@dataclass(frozen=True)
class AdaptedModel:
    """A model with adapters that is ready for its first step.

    ``first_losses``: of each batch in eval mode. ``missing``: kinds of input that the model takes
    and no batch has. ``order``: modules, by path, in the order of the forward.
    """

    model: Any
    layers: list[found.AdapterLayer]
    batches: list[Any]
    first_losses: list[float]
    missing: tuple[str, ...]
    order: dict[str, int]
    precision: Precision
    dtype: str


class Training:
    """Trains the adapters of a model on its batches and enters what it sees into ``recorder``;
    ``observers`` are shown the first optimizer step."""

    def __init__(self, adapted: AdaptedModel, recorder: Recorder, observers: Observers) -> None:
        self.adapted = adapted
        self.model = adapted.model
        self.layers = adapted.layers
        self.parameters = list(found.every_parameter(adapted.layers))
        self.batches = adapted.batches
        self.missing = adapted.missing
        self.precision = adapted.precision
        self.recorder = recorder
        self.observers = observers
        self.losses: dict[int, list[float]] = {}
        self.durations: list[float] = []
        self.rounds_done = 0
        self._optimizer: Any = None
        self._scaler: Any = None
        self._trained: set[str] = set()
        #: Buffers that a forward in training mode moves by itself, without any step.
        self._written: set[str] = set()
        self._before: dict[str, Any] = {}

    def begin(self) -> list[Any]:
        """Keep what the adapters are before the first step; returns the handles of hooks that
        count calls of their layers."""
        self._trained = {p.name for p in self.parameters if p.tensor.requires_grad}
        self._before = {p.name: held_here(p.tensor.detach()).clone() for p in self.parameters}
        found.note_trained_tokens(self.layers, self.batches)
        return found.count_calls(self.layers)

    def judge_steps(self, least: str) -> None:
        """Enter the gradients of the steps so far, and what moved. ``least``: how many steps there
        were to be, in words."""
        self.note_moves()
        self.judge_noted(least)

    def note_moves(self) -> None:
        """Read how far each parameter is from where it began."""
        for parameter in self.parameters:
            now = held_here(parameter.tensor.detach())
            change = (now - self._before[parameter.name]).abs()
            parameter.moved = float(change.max()) if change.numel() else 0.0

    def judge_noted(self, least: str) -> None:
        """As :meth:`judge_steps`, of what was read before."""
        self._judge_gradients()
        self.recorder.add("steps", True, self.rounds_done, least)
        self._judge_moves()

    def run(self, rounds: int, rate: float) -> None:
        frozen = found.outside_adapters(self.model, self.layers, frozen_sums(self.model))
        handles = self.begin()
        try:
            self._start_optimizer(rate)
            with ended_where_it_begins_again():
                self._first_rounds(rounds)
        finally:
            for handle in handles:
                handle.remove()
        self.judge_steps(f"at least {rounds} rounds")
        moved = changed(frozen, frozen_sums(self.model))
        kept = [name for name in moved if name in self._written]
        if kept:
            self.recorder.note(
                "step", f"{len(kept)} buffers are statistics: forward moves them ({kept[0]})"
            )
            moved = [name for name in moved if name not in self._written]
        names = ", ".join(moved[:NAMES_SHOWN])
        expected = f"0 of {len(frozen)} moved"
        self.recorder.add("frozen-stay", not moved, len(moved), expected, names, total=len(frozen))
        self._judge_loss(self._before, rate)

    def _first_rounds(self, rounds: int) -> None:
        for _ in range(rounds):
            self._round(watch=True)
        # A starts to move when B has: after a single step there is nothing to be seen yet.
        for scale in _LARGER_SCALES:
            if any(not p.got_gradient and p.seen for p in self.parameters):
                self._scale_to(scale)  # in float16 it may be zero at the small scale alone
                self._round(watch=True)
        self._scale_to(SCALE)

    def _start_optimizer(self, rate: float) -> None:
        import torch

        trained = [p for p in self.model.parameters() if p.requires_grad]
        half = any(p.dtype is torch.float16 for p in trained)
        with self.recorder.guard("gradients"):
            self._optimizer = torch.optim.AdamW(
                # Gradients of random weights may be far below Adam's usual epsilon, and would
                # then move nothing; in fp16 a smaller one is zero.
                trained,
                lr=rate,
                weight_decay=0.0,
                eps=1e-8 if half else 1e-16,
            )
        self._scaler = self.precision.scaler()

    def _round(self, *, watch: bool) -> None:
        """One forward, backward and optimizer step on each batch."""
        model = self.model
        model.train()
        learnt = 0
        first = watch and not self.rounds_done
        for batch in self.batches:
            before_forward = buffer_sums(model) if first else {}
            began = time.perf_counter()
            self._optimizer.zero_grad(set_to_none=True)
            before = random_state()
            with self.recorder.guard("gradients", model):
                with self.precision.forward():
                    loss = loss_of(self.model, batch)
                if first:  # ranges of activations that a layer keeps (I-BERT), as batch norms do
                    self._written |= set(changed(before_forward, buffer_sums(model)))
                if not loss.requires_grad and (learnt or batch is not self.batches[-1]):
                    # No adapter in its way: another kind of batch may reach them.
                    continue
                if not loss.requires_grad and self.missing and not self._any_called():
                    kinds = " or ".join(self.missing)
                    raise Stop(
                        f"no batch with {kinds} could be made, and the others reach no adapter",
                        "batch",
                    )
                value = float(loss.detach())
                if watch and not is_finite(value):
                    self._stop_at_bad_loss(batch, value, before)
                self._scaler.scale(loss).backward()
            learnt += 1
            # What overflows at a larger scale says nothing: the scaler skips that step.
            if watch and not self._overflowed():
                found.note_gradients(self.layers, kind_of(batch))
                self._stop_at_bad_gradient(batch, before)
            with self.recorder.guard("steps"), self.observers.step(self.layers):
                if self._scaler.is_enabled():
                    self._scaler.unscale_(self._optimizer)
                self._scaler.step(self._optimizer)
                self._scaler.update()
            self.losses.setdefault(id(batch), []).append(value)
            self.durations.append(time.perf_counter() - began)
        self.rounds_done += 1

    def _scale_to(self, scale: float) -> None:
        if self._scaler.is_enabled() and self.rounds_done:
            self._scaler.update(scale)

    def _overflowed(self) -> bool:
        """Whether the gradients are too large for a scale above the one that was begun with."""
        raised = self._scaler.is_enabled() and self._scaler.get_scale() > SCALE
        return raised and first_bad_gradient(self.model, self.adapted.order) is not None

    def _any_called(self) -> bool:
        return any(layer.calls for layer in self.layers)

    def _stop_at_bad_loss(self, batch: Any, value: float, state: Any) -> None:
        """The loss was finite before the first step and is not now."""
        bad = self._locate_forward(batch, state)
        steps = sum(len(losses) for losses in self.losses.values())
        text = f"the loss is {value} after {steps} steps: "
        text += f"first bad module: {bad}" if bad else "every module's output is finite"
        self.recorder.add("steps", False, value, "a finite loss", text)
        self.recorder.blame("steps", "NonFiniteLoss", text, bad.path if bad else "")
        raise Stop("steps failed")

    def _locate_forward(self, batch: Any, state: Any) -> NonFinite | None:
        """The first module whose output is not finite, in the same forward once more."""
        import torch

        random_state(state)
        with Locator(self.model, look=True) as locator, torch.no_grad(), self.precision.forward():
            loss_of(self.model, batch)
        return locator.non_finite

    def _stop_at_bad_gradient(self, batch: Any, state: Any) -> None:
        bad = first_bad_gradient(self.model, self.adapted.order)
        if bad is None:
            return
        name, largest = bad
        count = sum(not p.finite for p in self.parameters)
        text = f"the gradient of {name} is not finite first (largest finite value {largest:.3g})"
        module = name.rpartition(".")[0]
        self._optimizer.zero_grad(set_to_none=True)
        random_state(state)
        with self.recorder.guard("gradients", self.model), BackwardLocator(self.model) as locator:
            with self.precision.forward():
                loss = loss_of(self.model, batch)
            self._scaler.scale(loss).backward()
        if locator.found is not None:
            text, module = str(locator.found), locator.found.path
        self.recorder.add("gradients", False, f"{count} not finite", "finite gradients", text)
        self.recorder.blame("gradients", "NonFiniteGradient", text, module)
        raise Stop("gradients failed")

    def _judge_gradients(self) -> None:
        not_reached = found.without_tokens(self.layers)
        if not_reached:
            paths = ", ".join(layer.path for layer in not_reached[:NAMES_SHOWN])
            self.recorder.note("step", f"{len(not_reached)} adapted experts got no token: {paths}")
        not_called = [
            layer for layer in self.layers if not layer.calls and layer not in not_reached
        ]
        if self.missing and not_called:
            self.recorder.note(
                "step",
                f"{len(not_called)} adapters are not proven: there is no batch with "
                f"{' or '.join(self.missing)} ({not_called[0].path}, …)",
            )
            not_reached = [*not_reached, *not_called]
        out = {id(layer) for layer in not_reached}
        judged = [p for layer in self.layers if id(layer) not in out for p in layer.parameters]
        judged = [p for p in judged if p.name in self._trained]
        absent = {id(p) for layer in self.layers if layer.not_fed for p in layer.parameters}
        unused = [p for p in judged if id(p) in absent and not p.got_gradient]
        if unused:
            self.recorder.note(
                "step", "trainable tokens are not proven: they do not occur in the batch"
            )
            judged = [p for p in judged if p not in unused]
        without = self._without_gradient(judged)
        none = sum(not p.seen for p in without)
        names = ", ".join(clean_path(p.name) for p in without[:NAMES_SHOWN])
        detail = ""
        if without:
            detail = f"{none} got none at all, {len(without) - none} only zeros: {names}"
        hidden = self.recorder.hidden
        if hidden is not None and judged and len(without) == len(judged):
            # Nothing learns, and somebody made a loss of what was not a number.
            text = f"{hidden}; the loss is finite all the same"
            detail = f"{text}; {detail}"
            self.recorder.blame("gradients", "NonFiniteOutput", text, hidden.path)
        value = f"{len(judged) - len(without)} of {len(judged)}"
        expected = "every adapter parameter"
        good = bool(judged) and not without
        self.recorder.add("gradients", good, value, expected, detail, total=len(judged))

    def _without_gradient(
        self, judged: list[found.AdapterParameter]
    ) -> list[found.AdapterParameter]:
        """The parameters that should have got a gradient and have none. In a layer of another kind
        than LoRA that otherwise learns, what has none is without a use by PEFT's own design (what
        Shadow makes in the last layer for the next)."""
        without = [p for p in judged if not p.got_gradient]
        kind = getattr(own_config(self.model), "peft_type", "LORA")
        kind = getattr(kind, "value", kind)
        if kind == "LORA" or not without:
            return without
        learn = [layer for layer in self.layers if any(p.got_gradient for p in layer.parameters)]
        spare = {id(p) for layer in learn for p in layer.parameters if not p.seen}
        left = [p for p in without if id(p) in spare]
        if left:
            names = ", ".join(clean_path(p.name) for p in left[:NAMES_SHOWN])
            text = f"{len(left)} parameters of {kind} have no use in their layers: {names}"
            self.recorder.note("step", text)
        return [p for p in without if id(p) not in spare]

    def _judge_moves(self) -> None:
        with_gradient = [p for p in self.parameters if p.got_gradient]
        still = [p for p in with_gradient if not p.moved > 0]  # NaN is no move either
        names = ", ".join(clean_path(p.name) for p in still[:NAMES_SHOWN])
        if any(not is_finite(p.moved) for p in still):
            names += " (not finite after the steps)"
        value = f"{len(with_gradient) - len(still)} of {len(with_gradient)}"
        expected = "every adapter parameter with a gradient"
        good = bool(with_gradient) and not still
        self.recorder.add("adapters-move", good, value, expected, names, total=len(with_gradient))

    def _judge_loss(self, before: dict[str, Any], rate: float) -> None:
        """The loss in eval mode (no dropout) before and after; more, gentler steps if needed."""
        import torch

        learnt = [batch for batch in self.batches if id(batch) in self.losses]
        first = [self.adapted.first_losses[self.batches.index(batch)] for batch in learnt]
        start = sum(first) / len(first)
        noise = {"float32": 1e-6, "float64": 1e-6}.get(self.adapted.dtype, 1e-4) * max(
            abs(start), 1e-3
        )
        used, tried = self.rounds_done, [rate]
        now = self._mean_loss(learnt)
        for attempt in (rate, rate / 10):
            if now < start - noise:
                break
            if attempt != rate:
                with torch.no_grad():
                    for parameter in self.parameters:
                        parameter.tensor.copy_(before[parameter.name])
                self._start_optimizer(attempt)
                tried.append(attempt)
            for _ in range(MORE_ROUNDS // 4):
                for _ in range(4):
                    self._round(watch=False)
                now = self._mean_loss(learnt)
                if now < start - noise or not is_finite(now):
                    break
        detail = f"from {start:.6g} to {now:.6g} in {self.rounds_done} rounds, learning rate "
        detail += " then ".join(f"{one:g}" for one in tried)
        self.rounds_done, extra = used, self.rounds_done - used
        if extra:
            self.recorder.note("step", f"{extra} more rounds were run until the loss was judged")
        good = is_finite(now) and now < start - noise
        if not is_finite(now):
            bad = self._locate_forward(learnt[0], random_state())
            detail += f"; first bad module: {bad}" if bad else ""
            self.recorder.blame("loss-falls", "NonFiniteLoss", detail, bad.path if bad else "")
        self.recorder.add("loss-falls", good, now - start, "a change of the loss below 0", detail)

    def _mean_loss(self, batches: list[Any]) -> float:
        return sum(measured_loss(self.model, batch) for batch in batches) / len(batches)
