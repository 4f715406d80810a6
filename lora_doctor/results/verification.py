"""Verification: the training contract, executed. This file holds its result.

The contract itself runs in a child process, in ``contract.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from lora_doctor.errors import LimitReached
from lora_doctor.results import display
from lora_doctor.results.from_json import from_json
from lora_doctor.results.note import Note

if TYPE_CHECKING:  # what depth static has no value of; from_json finds them
    from lora_doctor.results.error_report import ErrorReport
    from lora_doctor.results.observations import Observations
    from lora_doctor.results.quantized_use import QuantizedUse
    from lora_doctor.results.round_trip import Saving

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

#: What a check of the adapters found; described at :attr:`Check.problems`.
Problem = Literal["unmatched", "stray", "frozen"]
#: What kept a verification from an answer; described at :attr:`Verification.obstacle`.
Obstacle = Literal["base-model", "batch", "size", "evidence", "limit", "not-proven"]


@dataclass(frozen=True)
class Check:
    """One named check of the training contract."""

    #: Such as ``loss-finite``.
    name: str
    #: ``skipped`` is not passed: ``detail`` says why.
    status: CheckStatus
    #: What was measured: a loss, a count, a relative difference (a fraction, not percent), or a
    #: string.
    value: Any = None
    #: What ``value`` is compared with, in words.
    expected: str = ""
    #: More in one line, such as why it was skipped.
    detail: str = ""
    #: What a failed check of the adapters found, where rules tell it apart. ``unmatched``: entries
    #: of the recipe that no adapter sits on. ``stray``: parameters outside the adapters that would
    #: be trained. ``frozen``: adapter parameters that would not.
    problems: tuple[Problem, ...] = ()
    #: The exception that failed it.
    raised: ErrorReport | None = None
    #: How many adapter parameters, or frozen weights, there are of which ``value`` counts some;
    #: ``None`` where it counts none of them.
    total: int | None = None

    def __str__(self) -> str:
        """Name, status and number on one line; of a failed one, what was expected as well."""
        expected = f"(expected {self.expected})" if self.status == "failed" else ""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        number = "" if self.value is None or isinstance(self.value, bool) else value
        return display.one_line((f"{self.name:<14}", self.status, number, expected, self.detail))


@dataclass(frozen=True)
class Failure:
    """The exception that ended a verification."""

    #: Name of the check that it ended.
    check: str
    #: Class of the exception.
    type: str
    #: Its message.
    message: str
    #: Path of the first bad module; empty when unknown.
    module: str = ""
    #: ``file:line`` of the deepest frame.
    where: str = ""
    #: The traceback.
    traceback: str = ""


@dataclass(frozen=True)
class AdapterGroup:
    """Adapters that are alike (as in :class:`ModuleGroup`), and whether they learn."""

    #: Module path with every number as ``*``.
    pattern: str
    #: Adapted layers in the model that was run.
    count: int
    #: Of these, with a gradient other than zero on some batch.
    with_gradient: int
    #: Of these, whose A and B both moved.
    moved: int
    #: Kinds of batch in which the group got a gradient, such as ``text`` or ``image+text``.
    batches: tuple[str, ...] = ()
    #: Some module paths without gradient.
    examples_without_gradient: tuple[str, ...] = ()
    #: Dtypes of what is trained in it.
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AddedInput:
    """An argument without which forward raised, so that the batch has it, and who else sends it."""

    #: Its name.
    name: str
    #: Class of the model's tokenizer.
    tokenizer: str
    #: Whether the tokenizer returns it, or a data collator of transformers makes it.
    by_tokenizer: bool
    #: Class of the model's processor, where its code names the argument; empty otherwise.
    processor: str = ""


@dataclass(frozen=True)
class BatchReport:
    """A batch that was run."""

    #: Such as ``text`` or ``image+text``.
    kind: str
    #: Name of each input to its shape.
    inputs: Mapping[str, tuple[int, ...]]
    #: Where the loss comes from, in words.
    loss: str
    #: The loss at each step.
    losses: tuple[float, ...] = ()
    #: What else was seen.
    notes: tuple[Note, ...] = ()
    #: Arguments that it has because forward raised without them.
    added: tuple[AddedInput, ...] = ()
    #: What forward raised on more than one sample, where the batch has only one for that.
    one_sample: str = ""


def _nothing_observed() -> Observations:
    from lora_doctor.results.observations import Observations

    return Observations()


@dataclass(frozen=True)
class Verification:
    """The training contract, executed once."""

    #: ``passed``: no check failed. ``failed``: one did. ``undetermined``: it could not be run, for
    #: a reason that says nothing about the recipe (a batch could not be made, a time limit), or a
    #: part of the recipe was not run.
    outcome: Literal["passed", "failed", "undetermined"]
    #: ``tiny`` (shrunken dimensions, random weights) or ``full`` (the real weights).
    depth: str
    #: Where it ran, such as ``cpu`` or ``cuda:0``.
    device: str
    #: Dtype of the model that was run.
    dtype: str
    #: The checks, in the order in which they ran.
    checks: tuple[Check, ...]
    #: The exception that ended it, if one did.
    failure: Failure | None = None
    #: Why it is undetermined; else empty.
    reason: str = ""
    #: The adapters of the model that was run.
    adapters: tuple[AdapterGroup, ...] = ()
    #: The batches.
    batches: tuple[BatchReport, ...] = ()
    #: Class of the model that was run.
    model_class: str = ""
    #: Parameters of the model that was run (of the tiny one at depth ``tiny``).
    model_parameters: int = 0
    #: Optimizer steps taken.
    steps: int = 0
    #: Seconds for one step; ``None`` when none was timed.
    step_seconds: float | None = None
    #: Memory at its peak, in bytes; ``None`` when not measured.
    peak_memory: int | None = None
    #: Duration of the whole verification, in seconds.
    seconds: float = 0.0
    #: Names of the patches that were in force.
    patches: tuple[str, ...] = ()
    #: What else was seen.
    notes: tuple[Note, ...] = ()
    #: Values read off the run.
    observations: Observations = field(default_factory=_nothing_observed)
    #: What the round trip through files showed; ``None`` when it was not reached.
    saving: Saving | None = None
    #: How the model's own code uses quantized layers, where that keeps it from running.
    quantized_uses: tuple[QuantizedUse, ...] = ()
    #: Buffers that the constructor computes and that have no values once the model is loaded.
    empty_buffers: tuple[str, ...] = ()
    #: Why the outcome is ``undetermined``; ``None`` for the other two. ``base-model``: the model
    #: without adapters raises, or its loss is not finite. ``batch``: no batch could be made.
    #: ``size``: the recipe may name what the tiny model is too small to have. ``limit``: a limit of
    #: lora-doctor ended the run. ``not-proven``: no check failed, but a part of the recipe was not
    #: run, as a note says. ``evidence``: anything else that could not be had.
    obstacle: Obstacle | None = None
    #: What the model raised without adapters, where that is the obstacle.
    base_error: ErrorReport | None = None
    #: What a quantized model raises once it is prepared for k-bit training, where it runs before.
    error_once_prepared: ErrorReport | None = None
    #: The limit of lora-doctor that ended the run, where that is the obstacle.
    limit: LimitReached | None = None

    def check(self, name: str) -> Check | None:
        return next((check for check in self.checks if check.name == name), None)

    @property
    def gradients_counted(self) -> bool:
        """Whether every adapter had its chance to get a gradient: neither an exception nor a
        gradient that is not finite ended the steps before."""
        check = self.check("gradients")
        ended = self.failure is not None and self.failure.check == "gradients"
        return check is not None and check.status != "skipped" and not ended

    def layers_trained_in(self, dtype: str) -> dict[str, int]:
        """Adapted layers in which something is trained in this dtype, by pattern."""
        return {group.pattern: group.count for group in self.adapters if dtype in group.dtypes}

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")

    def as_answer(self) -> Verification:
        """This verification as an answer about the whole recipe: ``undetermined`` where no check
        failed but a part of the recipe was not run."""
        unproven = next((note for note in self.notes if note.is_unproven), None)
        if self.outcome != "passed" or unproven is None:
            return self
        return replace(self, outcome="undetermined", reason=unproven.text, obstacle="not-proven")

    def __repr__(self) -> str:
        """One line; ``print`` shows the checks."""
        ran = [check for check in self.checks if check.status != "skipped"]
        held = f"{len(ran) - len(self.failed_checks)} of {len(ran)} checks passed"
        words = ("<Verification of", f"{self.model_class or 'a model'}:", self.outcome, f"({held})")
        return f"{display.one_line(words)}, depth {self.depth}>"

    def __str__(self) -> str:
        """The outcome, and one line for each check."""
        where = (self.model_class, f"depth {self.depth}", self.device, self.dtype)
        head = (f"training contract {self.outcome}:", ", ".join(filter(None, where)))
        lines = [display.one_line((*head, self.reason and f"({self.reason})"))]
        return "\n".join([*lines, *(f"  {check}" for check in self.checks)])

    def _repr_html_(self) -> str:
        """The outcome and the checks for a notebook."""
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

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
