"""What a dry run of the user's command did and saw: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lora_doctor.results.from_json import from_json
from lora_doctor.results.processes import Processes
from lora_doctor.results.training_signal import TrainingSignal

#: What no dry run shows, whatever it ran: said beside every verdict, in these words.
NOT_SHOWN = (
    "a dry run does not show: what depends on the real weights (overflow, quality, a loss that "
    "diverges), memory and speed at full size, rows that were not sampled, several devices"
)


@dataclass(frozen=True)
class ScriptError:
    """An exception that ended the user's code."""

    #: Its class; with its module unless that is ``builtins``.
    type: str
    #: Its message on one line.
    message: str
    #: The innermost line of the user's own files on the way to it; empty where there is none.
    file: str = ""
    #: Line of that file, from 1; 0 where there is none.
    line: int = 0
    #: ``file:line`` where it was raised.
    raised_in: str = ""
    #: The traceback, its end.
    traceback: str = ""
    #: Optimizer steps that were taken before.
    steps: int = 0


@dataclass(frozen=True)
class PackedSamples:
    """Several samples in one line of a batch, and whether they see each other: the tokens of the
    first were put in another order."""

    #: Samples in that line.
    samples: int
    #: Tokens of it.
    tokens: int
    #: The largest change of a logit of the next sample.
    change: float
    #: The largest logit there.
    size: float
    #: What else forward was called with.
    arguments: tuple[str, ...] = ()
    #: The largest change in a forward that keeps no cache; ``None`` where that was not tried.
    without_cache: float | None = None

    @property
    def seen(self) -> bool:
        """Whether a sample sees the one before it."""
        return self._is_change(self.change)

    @property
    def by_cache(self) -> bool:
        """Whether it does so because the forward keeps a cache, and only then."""
        other = self.without_cache
        return self.seen and other is not None and not self._is_change(other)

    def _is_change(self, change: float) -> bool:
        return change > 1e-5 * self.size


@dataclass(frozen=True)
class AccumulatedLoss:
    """The loss of the first optimizer step, whose micro-batches are accumulated."""

    #: Micro-batches of a step.
    steps: int
    #: What the loss does over rows: ``mean``, ``sum`` or ``other``.
    over_rows: str
    #: What went into the backward passes, all of them together.
    given: float
    #: What the same rows give without accumulation.
    expected: float
    #: The function of the user's that makes the loss.
    function: str = ""
    #: Its file.
    file: str = ""
    #: Its line, from 1; 0 where it is not known.
    line: int = 0


@dataclass(frozen=True)
class DroppedColumns:
    """Columns that the Trainer took out of the rows because forward does not name them."""

    #: Names of the columns.
    names: tuple[str, ...]
    #: Those of them that the model inside takes: name to its class.
    needed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FilteredRows:
    """Rows that a library took out of a set."""

    #: Function of the library.
    by: str
    #: Rows that it looked at.
    before: int
    #: Rows that it left.
    after: int


@dataclass(frozen=True)
class FrozenAdapters:
    """A model with adapters, none of which is trainable, that the command goes to train."""

    #: Tensors of the adapters.
    tensors: int
    #: The saved adapter that was loaded so; empty where the command froze it otherwise.
    adapter: str = ""
    #: The file with the call that loaded it.
    file: str = ""
    #: Its line, from 1; 0 where it is not known.
    line: int = 0


@dataclass(frozen=True)
class ShiftedLabels:
    """Labels that are the next tokens already, of a model whose loss shifts them by itself."""

    #: Labels of the batch that the loss is taken on.
    labels: int
    #: Those of them that are the token that follows.
    next_tokens: int
    #: The loss that the model gave.
    loss: float
    #: The cross entropy of its logits with the labels shifted by one.
    shifted: float
    #: The same with the labels as they are.
    unshifted: float


@dataclass(frozen=True)
class SavedWithAdapters:
    """A model that was saved by its own ``save_pretrained`` while PEFT's layers were in it."""

    #: The folder.
    path: str
    #: Its class.
    model_class: str
    #: Weights under names that the class does not have.
    weights: int
    #: Some of these names.
    names: tuple[str, ...] = ()
    #: Whether an adapter was saved as well.
    adapter_too: bool = False
    #: File of the call.
    file: str = ""
    #: Its line, from 1; 0 where it is not known.
    line: int = 0


@dataclass(frozen=True)
class Resumed:
    """The last step of the run, taken once more from the checkpoint that was saved before it."""

    #: The step.
    step: int
    #: Its loss when the run went on.
    loss: float = 0.0
    #: Its loss from the checkpoint.
    resumed_loss: float = 0.0
    #: How far the trainable numbers moved in that step, at most.
    moved: float = 0.0
    #: By how much they differ after the step from the checkpoint, at most.
    apart: float = 0.0
    #: Files of the checkpoint.
    files: tuple[str, ...] = ()
    #: What resuming raised instead.
    error: str = ""
    #: File of the user's that calls the trainer.
    file: str = ""
    #: Line of that file, from 1; 0 where it is not known.
    line: int = 0

    @property
    def same(self) -> bool:
        """Whether resuming is the same as going on."""
        near = abs(self.loss - self.resumed_loss) <= 1e-3 * max(abs(self.loss), 1e-6)
        return not self.error and near and self.apart <= 0.05 * self.moved + 1e-12


@dataclass(frozen=True)
class DryRun:
    """The run of the user's command with the model shrunk and the data cut."""

    #: The words of the command.
    command: tuple[str, ...]
    #: Its exit code; 0 also where it was ended after its steps.
    exit_code: int
    #: What took the optimizer steps: the class of a trainer, or ``a loop``; empty where none were.
    trained_by: str = ""
    #: Optimizer steps that were taken.
    steps: int = 0
    #: Optimizer steps that the whole run would take; ``None`` where nobody knows.
    planned_steps: int | None = None
    #: Rows that the training set reports.
    rows: int | None = None
    #: Key of the recipe to the ``file:line`` that sets it, or ``command line``; the others are the
    #: framework's own choice.
    origins: Mapping[str, str] = field(default_factory=dict)
    #: What ran beside what was asked, such as ``distributed`` or ``attention``.
    ran: Mapping[str, str] = field(default_factory=dict)
    #: Names and shapes of what the model's forward was called with.
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: Paths that were written to a temporary folder instead.
    redirected: tuple[str, ...] = ()
    #: What ended the user's code, if it did.
    error: ScriptError | None = None
    #: A line with several samples; ``None`` where no batch had one.
    packed: PackedSamples | None = None
    #: A loss of the user's own under accumulation; ``None`` without one.
    accumulated: AccumulatedLoss | None = None
    #: Columns that the Trainer took out; ``None`` where it took none.
    dropped_columns: DroppedColumns | None = None
    #: Filters of libraries that took rows out.
    filtered: tuple[FilteredRows, ...] = ()
    #: A model that trains without an adapter that does; ``None`` where one does.
    frozen: FrozenAdapters | None = None
    #: The processes that train together; ``None`` where one was asked for, and one ran.
    processes: Processes | None = None
    #: The last step from a checkpoint of the run; ``None`` where that was not tried.
    resumed: Resumed | None = None
    #: Labels that are shifted twice; ``None`` where none are.
    shifted_labels: ShiftedLabels | None = None
    #: A model that was saved with the adapters in it; ``None`` where none was.
    saved_with_adapters: SavedWithAdapters | None = None
    #: What the run has to learn from.
    signal: TrainingSignal = field(default_factory=TrainingSignal)
    #: What it took, in seconds.
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DryRun:
        return from_json(cls, data)
