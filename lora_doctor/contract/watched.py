"""What can be seen of the training contract in steps that somebody else's loop takes.

Nothing is run here but what finds the module that makes a number which is not finite.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from lora_doctor.contract import adapters as found
from lora_doctor.contract.locator import Locator, NonFinite
from lora_doctor.contract.measure import kind_of
from lora_doctor.contract.observers import Observers
from lora_doctor.contract.observers.base import Setting
from lora_doctor.contract.precision import Precision
from lora_doctor.contract.recorder import Recorder
from lora_doctor.contract.training import AdaptedModel, Training
from lora_doctor.nn.copying import attributes_kept, statistics_kept, undisturbed
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.verification import Verification

#: A size that another process has seen in its part: above zero, and no more is known here.
_ELSEWHERE = sys.float_info.min
_NOTHING = "in the same forward once more, every module's output is finite"


class WatchedSteps:
    """The first steps of a model with adapters, as its own loop takes them.

    ``seconds`` of the verification is not told: they are the user's own.
    """

    def __init__(self, model: Any, batch: Any, *, dtype: str, device: str) -> None:
        self.model = model
        self.layers = found.find_adapters(model)
        self.parameters = list(found.every_parameter(self.layers))
        self._batch = batch
        self._dtype, self._device = dtype, device
        self._recorder = Recorder()
        self._training = Training(
            AdaptedModel(
                model, self.layers, [batch], first_losses=[], missing=(), order={},
                precision=Precision.of(Recipe(), dtype, device), dtype=dtype,
            ),
            self._recorder,
            Observers(Setting(True, dtype, dtype, learning_rate=0.0), asked=False),
        )  # fmt: skip
        self._handles = self._training.begin()

    def before_step(self) -> None:
        """Read the gradients that the step will use."""
        found.note_gradients(self.layers, kind_of(self._batch))

    def after_step(self) -> None:
        self._training.rounds_done += 1

    @property
    def steps(self) -> int:
        return self._training.rounds_done

    def judge(self, least: str) -> Verification:
        """What the steps show; the hooks are gone then. ``least``: how many there were to be."""
        self.close()
        with undisturbed():
            self._training.judge_steps(least)
        return self._verification()

    def told(self) -> str:
        """What the steps show of the parts of the parameters that this process holds, for those
        that hold the others; the hooks are gone then."""
        self.close()
        with undisturbed():
            self._training.note_moves()
        own = list(enumerate(self.parameters))
        word = {
            "names": [len(own), len(self.layers)],
            "calls": [layer.calls for layer in self.layers],
            "unseen": [number for number, one in own if not one.seen],
            "zero": [number for number, one in own if not one.largest > 0],
            "still": [number for number, one in own if not one.moved > 0],
        }
        return json.dumps(word, separators=(",", ":"))

    def judge_together(self, least: str, told: Sequence[str]) -> Verification | None:
        """The same as :meth:`judge`, of what all processes have told; a part in which nothing was
        seen is enough in none of them. ``None``: they do not hold parts of the same parameters."""
        words = [json.loads(word) for word in told]
        if any(word["names"] != words[0]["names"] for word in words):
            return None
        lacking = {
            kind: set.intersection(*(set(word[kind]) for word in words))
            for kind in ("unseen", "zero", "still")
        }
        for number, one in enumerate(self.parameters):
            one.seen = number not in lacking["unseen"]
            if one.largest == 0 and number not in lacking["zero"]:
                one.largest = _ELSEWHERE
                one.batches.append(kind_of(self._batch))
            if one.moved == 0 and number not in lacking["still"]:
                one.moved = _ELSEWHERE
        for number, layer in enumerate(self.layers):
            layer.calls = max(word["calls"][number] for word in words)
        self._training.judge_noted(least)
        return self._verification()

    def judge_loss(
        self, value: float, step: int, bad: NonFinite | None, why_not: str = ""
    ) -> Verification:
        """A loss that is not finite, and the module that was found to make it. ``why_not``: why
        none could be looked for."""
        self.close()
        name = "steps" if step > 1 else "loss-finite"
        text = f"the loss is {value} in step {step}: "
        nothing = f"the module was not looked for, because {why_not}" if why_not else _NOTHING
        text += f"first bad module: {bad}" if bad else nothing
        self._recorder.add(name, False, value, "a finite loss", text)
        self._recorder.blame(name, "NonFiniteLoss", text, bad.path if bad else "")
        return self._verification()

    def judge_gradient(self, name: str, largest: float, count: int, step: int) -> Verification:
        """A gradient that is not finite: of which parameter first, the largest finite value in it,
        and of how many."""
        self.close()
        text = (
            f"the gradient of {name} is not finite first in step {step} (largest finite value "
            f"{largest:.3g})"
        )
        self._recorder.add("gradients", False, f"{count} not finite", "finite gradients", text)
        self._recorder.blame("gradients", "NonFiniteGradient", text, name.rpartition(".")[0])
        return self._verification()

    def close(self) -> None:
        """Take the hooks out; twice is once."""
        while self._handles:
            self._handles.pop().remove()

    def _verification(self) -> Verification:
        reason = "not run: only what the live run shows is known"
        return Verification(
            outcome="failed" if self._recorder.failed else "passed",
            depth="full",
            device=self._device,
            dtype=self._dtype,
            checks=self._recorder.checks(reason),
            failure=self._recorder.failure,
            adapters=found.groups_of(self.layers, [kind_of(self._batch)]),
            model_class=type(self.model).__name__,
            steps=self.steps,
            notes=tuple(self._recorder.notes),
        )


def first_bad_module(
    model: Any, given: dict[str, Any], mixed: tuple[str, Any] | None
) -> NonFinite | None:
    """The first module whose output is not finite, in the same forward once more; the model and
    the random generators stay as they are. ``mixed``: device type and dtype of an autocast.

    Raises whatever the model's forward raises.
    """
    import torch

    with (
        undisturbed(),
        statistics_kept(model),
        attributes_kept(model),
        Locator(model, look=True) as locator,
        torch.no_grad(),
        torch.autocast(mixed[0], dtype=mixed[1]) if mixed else contextlib.nullcontext(),
    ):
        model(**given)
    return locator.non_finite
