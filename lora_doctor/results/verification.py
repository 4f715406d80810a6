"""Verification: the training contract, executed. This file holds its result.

The contract itself runs in a child process, in ``contract.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lora_doctor.results import display
from lora_doctor.results.from_json import from_json
from lora_doctor.results.note import Note
from lora_doctor.results.observations import Observations
from lora_doctor.results.quantized_use import QuantizedUse
from lora_doctor.results.round_trip import Saving
from lora_doctor.results.structure import ErrorReport

CheckStatus = Literal["passed", "failed", "skipped"]

#: The named checks of the training contract, in the order in which they run.
CHECKS: Mapping[str, str] = {
    "builds": "the model can be built",
    "attaches": "PEFT attaches adapters to what the recipe names, and to nothing else",
    "forward": "the forward runs",
    "starts-at-base": "the adapted model starts at the base model's loss",
    "loss-finite": "the loss is finite",
    "gradients": "every adapter parameter gets a finite gradient",
    "steps": "optimizer steps run",
    "adapters-move": "A and B of every adapter move",
    "frozen-stay": "frozen weights do not move",
    "loss-falls": "the loss on one fixed batch falls",
    "save-reload": "saved and reloaded adapters give the same logits",
    "merge": "merged weights give the same logits",
}

#: What a check of the adapters found. ``unmatched``: entries of the recipe that no adapter sits on.
#: ``stray``: parameters outside the adapters that would be trained. ``frozen``: adapter parameters
#: that would not.
Problem = Literal["unmatched", "stray", "frozen"]
#: What kept a verification from an answer. ``base-model``: the model without adapters raises, or
#: its loss is not finite. ``batch``: no batch could be made. ``size``: the recipe may name what the
#: tiny model is too small to have. ``evidence``: anything else that could not be had.
Obstacle = Literal["base-model", "batch", "size", "evidence"]


@dataclass(frozen=True)
class Check:
    """One check of the training contract.

    ``value`` is the measured number (or text), ``expected`` what it is held against, in words;
    ``detail`` says more in one line, such as why it was skipped.
    """

    name: str
    status: CheckStatus
    value: Any = None
    expected: str = ""
    detail: str = ""
    #: What a failed check found, where rules tell it apart.
    problems: tuple[Problem, ...] = ()
    #: The exception that failed it.
    raised: ErrorReport | None = None

    def __str__(self) -> str:
        """Name, status and number on one line; of a failed one, what was expected as well."""
        expected = f"(expected {self.expected})" if self.status == "failed" else ""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        number = "" if self.value is None or isinstance(self.value, bool) else value
        return display.one_line((f"{self.name:<14}", self.status, number, expected, self.detail))


@dataclass(frozen=True)
class Failure:
    """The exception that ended a verification. ``module``: path of the first bad module."""

    check: str
    type: str
    message: str
    module: str = ""
    where: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class AdapterGroup:
    """Adapters that are alike (:class:`ModuleGroup`'s pattern), and whether they learn.

    ``count`` layers, of which ``with_gradient`` got a non-zero gradient on some batch in the
    steps, and ``moved`` whose A and B both moved. ``batches``: kinds of batch in which it got a
    gradient, such as ``text`` or ``image+text``. ``dtypes``: of what is trained in it.
    """

    pattern: str
    count: int
    with_gradient: int
    moved: int
    batches: tuple[str, ...] = ()
    examples_without_gradient: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchReport:
    """A batch that was run. ``inputs``: name to shape; ``loss``: how it was got."""

    kind: str
    inputs: Mapping[str, tuple[int, ...]]
    loss: str
    losses: tuple[float, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Verification:
    """The training contract, executed once.

    ``outcome``: ``passed`` when no check failed, ``failed`` when one did, ``undetermined`` when
    it could not be run for a reason that says nothing about the recipe (a batch could not be
    made, a time limit). ``model_parameters``: of the model that was run (the tiny one at depth
    ``tiny``). ``observations``: numbers read off it while it ran; ``saving``: what the
    round trip through files showed, ``None`` when it was not reached. ``quantized_uses``: what
    keeps a quantized model from running. Times in seconds, memory in bytes.
    """

    outcome: Literal["passed", "failed", "undetermined"]
    depth: str
    device: str
    dtype: str
    checks: tuple[Check, ...]
    failure: Failure | None = None
    reason: str = ""
    adapters: tuple[AdapterGroup, ...] = ()
    batches: tuple[BatchReport, ...] = ()
    model_class: str = ""
    model_parameters: int = 0
    steps: int = 0
    step_seconds: float | None = None
    peak_memory: int | None = None
    seconds: float = 0.0
    patches: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    observations: Observations = field(default_factory=Observations)
    saving: Saving | None = None
    quantized_uses: tuple[QuantizedUse, ...] = ()
    #: Why the outcome is ``undetermined``; ``None`` for the other two. ``reason`` says it in words.
    obstacle: Obstacle | None = None
    #: What the model raised without adapters, where that is the obstacle.
    base_error: ErrorReport | None = None
    #: What a quantized model raises once it is prepared for k-bit training, where it runs before.
    error_once_prepared: ErrorReport | None = None

    def check(self, name: str) -> Check | None:
        return next((check for check in self.checks if check.name == name), None)

    @property
    def gradients_counted(self) -> bool:
        """Whether every adapter had its chance to get a gradient: neither an exception nor a
        gradient that is not finite ended the steps before."""
        check = self.check("gradients")
        ended = self.failure is not None and self.failure.check == "gradients"
        return check is not None and check.status != "skipped" and not ended

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")

    def __str__(self) -> str:
        """The outcome, and one line for each check."""
        where = (self.model_class, f"depth {self.depth}", self.device, self.dtype)
        head = (f"training contract {self.outcome}:", ", ".join(filter(None, where)))
        lines = [display.one_line((*head, self.reason and f"({self.reason})"))]
        return "\n".join([*lines, *(f"  {check}" for check in self.checks)])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verification:
        return from_json(cls, data)

    @classmethod
    def undetermined(
        cls,
        reason: str,
        *,
        depth: str,
        device: str = "cpu",
        obstacle: Obstacle = "evidence",
        base_error: ErrorReport | None = None,
    ) -> Verification:
        """A verification that could not be run; the reason says nothing about the recipe."""
        return cls(
            "undetermined",
            depth,
            device,
            "",
            (),
            reason=reason,
            obstacle=obstacle,
            base_error=base_error,
        )
