"""The tasks of a case that run code of the model: each in a child process, within limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lora_doctor.engine.child_failures import evidence_error, read_answer
from lora_doctor.engine.evidence_store import EvidenceStore
from lora_doctor.engine.limits import TaskLimits
from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.diagnosis import Gathered
from lora_doctor.sandbox.outcome import Outcome
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.model_source import ModelSource

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A task that gives one piece of evidence."""

    #: Name of the piece.
    name: str
    #: ``module:function`` that the child calls.
    target: str
    #: Where the piece comes from, in words.
    origin: str
    #: What could not be made where it fails, in words.
    what: str


ADAPTER_LOADING = Task(
    "adapter_loading",
    "lora_doctor.evidence.adapter:gather",
    "PeftModel.from_pretrained on the meta device",
    "the adapter on the meta device",
)
ADAPTER_STEPS = Task(
    "adapter_steps",
    "lora_doctor.evidence.adapter_steps:gather",
    "the adapter calls of the program, by PEFT on the meta device",
    "the adapters of the program on the meta device",
)
STRUCTURE = Task(
    "structure",
    "lora_doctor.evidence.meta:gather",
    "the real class on the meta device, adapters by PEFT",
    "the meta device model",
)
CHECKPOINT_QUANTIZATION = Task(
    "checkpoint_quantization",
    "lora_doctor.evidence.checkpoint_quantization:gather",
    "the quantizer of the installed transformers, adapters by PEFT on its layers",
    "the checkpoint's quantization",
)
LOADING = Task(
    "loading",
    "lora_doctor.evidence.loading:gather",
    "from_pretrained on the meta device, names and shapes of the checkpoint",
    "loading on the meta device",
)
LOADING_BY_CODE = Task(
    "loading",
    "lora_doctor.evidence.loading_by_code:gather",
    "the factory, called twice, and the names in the checkpoint that it loads",
    "what the factory loads",
)
REFUSED_ARGUMENTS = Task(
    "refused_arguments",
    "lora_doctor.evidence.refused_arguments:gather",
    "the classes of the Trainer's arguments, and the framework's own parser",
    "the arguments of the Trainer",
)
MISUSED_VALUES = Task(
    "misused_values",
    "lora_doctor.evidence.misused_values:gather",
    "values of PEFT's config and of the Trainer's arguments, used in two steps of training a layer",
    "values of another type",
)
CHAT_TEMPLATE = Task(
    "chat_template",
    "lora_doctor.evidence.chat_template:gather",
    "apply_chat_template of the installed transformers",
    "a conversation by the model's template",
)
PROCESSED_IMAGE = Task(
    "processed_image",
    "lora_doctor.evidence.processed_image:gather",
    "the processor in the model's folder, and the class on the meta device",
    "an image by the model's processor",
)
REFUSED_TRAINER = Task(
    "refused_trainer",
    "lora_doctor.evidence.refused_trainer:gather",
    "the trainer's own class, on a tiny model",
    "the trainer",
)
FIRST_BATCH = Task(
    "first_batch",
    "lora_doctor.evidence.first_batch:gather",
    "rows of the program through its collator and its trainer's own class, on a tiny model",
    "the first batch of the program's rows",
)
ADAPTED_PART = Task(
    "adapted_part",
    "lora_doctor.evidence.adapted_part:gather",
    "the part of the model that the program adapts, handed to get_peft_model on the meta device",
    "the part that gets adapters",
)
LONG_ROW = Task(
    "long_row",
    "lora_doctor.evidence.long_row:gather",
    "a tiny model with as many positions as the real one, on a row as long as the longest",
    "a row as long as the longest",
)
PLAIN_WEIGHTS = Task(
    "plain_weights",
    "lora_doctor.evidence.plain_weights:gather",
    "a tiny model with plain weights, loaded with the checkpoint's quantization_config",
    "weights in floating point under the checkpoint's quantization",
)
MEMORY_PLAN = Task(
    "memory_plan",
    "lora_doctor.memory_plan.gather:gather",
    "a training step of the real class on the meta device",
    "the memory plan",
)


def supervision_of(file_name: str) -> Task:
    """The task that looks at rows of this file."""
    return Task(
        "supervision",
        "lora_doctor.evidence.supervision:gather",
        f"rows of {file_name} through the model's tokenizer",
        "rows of the training data",
    )


@dataclass(frozen=True)
class ChildTasks:
    """Runs functions named ``module:function`` that take a source, a recipe and patches.

    ``store``: is told what each piece of evidence cost. ``progress``: is told what goes on.
    """

    worker: Worker
    source: ModelSource
    patches: tuple[Patch, ...]
    store: EvidenceStore
    progress: Callable[[str], None]

    def gather(
        self,
        task: Task,
        kind: type[T],
        recipe: Recipe,
        limits: TaskLimits,
        check: Callable[[T], object] = lambda found: None,
        **more: Any,
    ) -> T:
        """The piece of evidence that a task gives; ``check`` raises where it is no such piece, and
        ``more`` are further arguments of the task, as JSON.

        Raises:
            EvidenceError: it cannot be had.
            InputError: the child found that the user's input is at fault.
        """
        outcome = self.run(task.target, recipe, limits, **more)
        self.store.gathered.append(cost(task.name, task.origin, outcome))
        if outcome.failure:
            raise self.error(task.what, outcome, limits)
        return read_answer(kind, outcome, task.what, check)

    def run(self, target: str, recipe: Recipe, limits: TaskLimits, **more: Any) -> Outcome:
        """The outcome of one task; ``more``: further arguments of the function, as JSON."""
        arguments = {
            "source": self.source.for_child(),
            "recipe": recipe.to_json(),
            "patches": [patch.to_json() for patch in self.patches],
            **more,
        }
        return self.worker.run(
            target,
            arguments,
            time_limit=limits.seconds,
            memory_limit=limits.memory,
            progress=self.progress,
            import_cwd=self.source.kind == "factory",
        )

    def error(self, what: str, outcome: Outcome, limits: TaskLimits) -> EvidenceError:
        """Why ``what`` cannot be obtained: see :func:`child_failures.evidence_error`."""
        return evidence_error(what, outcome, limits, self.worker.import_errors)


def cost(name: str, origin: str, outcome: Outcome) -> Gathered:
    """What a task cost, or why it gave nothing."""
    reason = outcome.failure.message if outcome.failure else None
    return Gathered(name, origin, round(outcome.seconds, 3), reason, outcome.peak_rss or None)
