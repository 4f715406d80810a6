"""How long a task of a case may run and how much memory it may take, and what it means when it does
not get by with that: a limit of ours says nothing about the recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_doctor.errors import LimitReached
from lora_doctor.limits import HUB_SECONDS, META_SECONDS, TINY_SECONDS
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.sandbox import memory
from lora_doctor.sandbox.outcome import TaskFailure
from lora_doctor.static.weights import DTYPE_BITS
from lora_doctor.text import size_in_words

if TYPE_CHECKING:
    from lora_doctor.static.weights import Weights

GIB = 1 << 30
#: Of a child process that loads no weights; a tiny model and its libraries take half a GiB.
DEFAULT_MEMORY = 8 * GIB
DEFAULT_FULL_SECONDS = 3600.0
#: The libraries, and with a GPU what its driver maps.
_LIBRARIES = 4 * GIB
#: The model, the copy that it is compared with, and the one with merged adapters.
_COPIES = 3
#: Weight, gradient and two moments of Adam, all float32, for each trained parameter.
_TRAINED_BYTES = 16
#: What the machine keeps when a checkpoint wants more than there is.
_LEFT_TO_THE_MACHINE = 0.05
#: A slow disk or network, and training on a CPU: seconds that a byte of the checkpoint is given.
_SECONDS_PER_BYTE = 1 / 20e6
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}

_DEFAULT, _GIVEN = "the default", "as given"


@dataclass(frozen=True)
class Limits:
    """What a run may take: seconds for each stage, resident memory of a child in bytes.

    ``None`` is by size: at depth ``full`` as much as the checkpoint needs and the machine has, else
    8 GiB; ``full_seconds`` an hour, and more for a large checkpoint.
    """

    #: For all requests to a hub.
    hub_seconds: float = HUB_SECONDS
    #: For a task on the meta device.
    meta_seconds: float = META_SECONDS
    #: For one run of the shrunken model.
    tiny_seconds: float = TINY_SECONDS
    #: For one run of the real weights.
    full_seconds: float | None = None
    #: Resident memory of a child process, in bytes.
    memory: int | None = None

    @property
    def longest(self) -> float:
        """Seconds of the stage that may take longest, of those that are given."""
        return max(self.meta_seconds, self.tiny_seconds, self.full_seconds or 0.0)

    def of_meta(self) -> TaskLimits:
        """Of a task on the meta device."""
        return self._light(self.meta_seconds, Limits.meta_seconds)

    def of_tiny(self) -> TaskLimits:
        """Of a task with a tiny model."""
        return self._light(self.tiny_seconds, Limits.tiny_seconds)

    def of_full(self, checkpoint: Checkpoint | None) -> TaskLimits:
        """Of a task with the real weights; ``None`` where nothing tells how large they are."""
        size, size_by = self._full_memory(checkpoint)
        if self.full_seconds is not None:
            return TaskLimits(self.full_seconds, _GIVEN, size, size_by)
        if checkpoint is None:
            return TaskLimits(DEFAULT_FULL_SECONDS, _DEFAULT, size, size_by)
        seconds = round(DEFAULT_FULL_SECONDS + checkpoint.stored * _SECONDS_PER_BYTE)
        return TaskLimits(seconds, f"for {checkpoint}", size, size_by)

    def _light(self, seconds: float, default: float) -> TaskLimits:
        seconds_by = _DEFAULT if seconds == default else _GIVEN
        if self.memory is not None:
            return TaskLimits(seconds, seconds_by, self.memory, _GIVEN)
        return TaskLimits(seconds, seconds_by, DEFAULT_MEMORY, _DEFAULT)

    def _full_memory(self, checkpoint: Checkpoint | None) -> tuple[int, str]:
        if self.memory is not None:
            return self.memory, _GIVEN
        left = memory.available()
        most = None if left is None else int(left * (1 - _LEFT_TO_THE_MACHINE))
        if checkpoint is not None:
            needs = max(checkpoint.memory(), DEFAULT_MEMORY)
            if most is None or needs <= most:
                return needs, f"for {checkpoint}"
        if most is None:
            return DEFAULT_MEMORY, _DEFAULT
        return most, "what this machine has available"


@dataclass(frozen=True)
class TaskLimits:
    """The limits of one task, and who set each, in words."""

    seconds: float
    seconds_by: str
    memory: int
    memory_by: str


@dataclass(frozen=True)
class Checkpoint:
    """What is loaded at depth ``full``. ``stored``: bytes of its files; ``parameters``: numbers in
    them; ``width``: bytes of a number once it is loaded; ``trained``: parameters that the recipe
    trains."""

    stored: int
    parameters: int
    width: float
    trained: int

    @classmethod
    def of(
        cls, weights: Weights | None, file_bytes: int, recipe: Recipe, trained: int
    ) -> Checkpoint | None:
        """By the safetensors headers, else by the sizes of the files; ``None`` without either."""
        if weights is not None and not weights.unread:
            bits = sum(count * DTYPE_BITS.get(kind, 32) for kind, count in weights.dtypes.items())
            stored, parameters = bits // 8, sum(weights.dtypes.values())
        else:
            stored, parameters = file_bytes, file_bytes // 2
        if not parameters:
            return None
        return cls(stored, parameters, _width(recipe, stored / parameters), trained)

    def memory(self) -> int:
        """Resident bytes of the process that loads and trains it, generously: the files, which are
        mapped while they are read, and the copies of the model."""
        loaded = int(self.parameters * self.width)
        return _LIBRARIES + self.stored + _COPIES * loaded + _TRAINED_BYTES * self.trained

    def __str__(self) -> str:
        return f"a checkpoint of {size_in_words(self.stored)}"


def _width(recipe: Recipe, native: float) -> float:
    """Bytes of a number as the recipe loads it. With quantization those that stay (embeddings, the
    head) are float32 once the model is prepared for it: 2 for all of them is more than enough."""
    if recipe.quantized:
        return 2
    return max(_BYTES.get(str(recipe.get("dtype")), native), 1)


def limit_of(failure: TaskFailure, limits: TaskLimits) -> LimitReached | None:
    """The limit of ours that ended a task, with who set it; ``None`` where none did."""
    limit = failure.limit
    if limit is None:
        return None
    return replace(limit, set_by=limits.seconds_by if limit.kind == "time" else limits.memory_by)


def sentence(what: str, limit: LimitReached, failure: TaskFailure) -> str:
    """Why ``what`` is not known: the limit, what had been reached, and the option."""
    stage = f" while {limit.stage}" if limit.stage else ""
    if limit.kind == "time":
        frame = limit.stack.partition("\n")[0]
        return (
            f"{what} reached the time limit: {limit.reached:.3g} s{stage}"
            f"{f', in {frame}' if frame else ''}; the limit is {limit.limit:.6g} s "
            f"({limit.set_by}), raise it with {limit.option} SECONDS"
        )
    used, most = (size_in_words(int(size), 2) for size in (limit.reached, limit.limit))
    refused = f", and more was refused ({failure.message})" if failure.type else ""
    return (
        f"{what} reached the memory limit: {used} of resident memory{stage}{refused}; the limit is "
        f"{most} ({limit.set_by}), raise it with {limit.option} GIB"
    )
