"""The memory plan: what a recipe and its alternatives take on one GPU. Only data; no torch.

All sizes are bytes. Each number says how it was got and by which formula; one that could not be
had is ``None`` with the reason, and a total that lacks one is a lower bound, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lora_doctor.errors import Remedy
from lora_doctor.results.from_json import from_json
from lora_doctor.results.note import Note
from lora_doctor.text import GIB

#: How a size was got; described at :attr:`MemoryPart.source`.
Source = Literal["counted", "measured", "asked", "assumed", "missing"]
#: Memory of common cards in GiB; makers write GB.
CARDS = (8, 16, 24, 48, 80)


@dataclass(frozen=True)
class MemoryPart:
    """One share of the memory."""

    #: Such as ``activations``.
    name: str
    #: Its size in bytes; ``None`` when it could not be had, ``formula`` says why.
    bytes: int | None
    #: How the number is made, or why it is missing.
    formula: str
    #: ``counted``: sizes of the real classes' tensors. ``measured``: a forward and a backward of
    #: the real classes on the meta device. ``asked``: of the optimizer itself. ``assumed``: by the
    #: formula. ``missing``: it could not be had.
    source: Source
    #: Bytes that it takes at least, where ``bytes`` is not exact.
    low: int | None = None
    #: Bytes that it takes at most, where ``bytes`` is not exact.
    high: int | None = None
    #: What the user can change so that it is known; ``None`` where it is, or for nothing.
    remedy: Remedy | None = None

    @property
    def least(self) -> int:
        return self.low if self.low is not None else self.bytes or 0

    @property
    def most(self) -> int | None:
        return self.high if self.high is not None else self.bytes


@dataclass(frozen=True)
class MemoryVariant:
    """A recipe and what it takes."""

    #: ``recipe``, or what is changed.
    name: str
    #: Recipe keys with their new values: the edits that make it out of the user's recipe.
    changes: Mapping[str, Any]
    #: The shares of the memory.
    parts: tuple[MemoryPart, ...]

    @property
    def missing(self) -> tuple[MemoryPart, ...]:
        return tuple(part for part in self.parts if part.bytes is None)

    @property
    def total(self) -> int | None:
        """Bytes at the peak; ``None`` where a part is missing."""
        return None if self.missing else sum(part.bytes or 0 for part in self.parts)

    @property
    def low(self) -> int:
        """It takes no less than this; parts that are missing count as nothing."""
        return sum(part.least for part in self.parts)

    @property
    def high(self) -> int | None:
        """It takes no more than this; ``None`` where a part is missing."""
        return None if self.missing else sum(part.most or 0 for part in self.parts)

    def fits(self, budget: int) -> bool | None:
        """Whether it fits into so many bytes; ``None`` where that is not sure."""
        if self.low > budget:
            return False
        return True if self.high is not None and self.high <= budget else None


@dataclass(frozen=True)
class PlannedGpu:
    """A kind of card that the plan is held against."""

    #: As the user gives it: ``a100-80gb``.
    name: str
    #: As its maker calls it.
    title: str
    #: Bytes that CUDA reports of it.
    memory: int
    #: Where that is known from.
    memory_from: str


@dataclass(frozen=True)
class MemoryPlan:
    """The memory plan: one GPU, one training step."""

    #: Samples of a batch on the device.
    batch_size: int
    #: Tokens of a sample; 0 where the model reads none.
    length: int
    #: Who chose ``batch_size``.
    batch_size_from: str
    #: Who chose ``length``.
    length_from: str
    #: The Trainer's name of the optimizer.
    optimizer: str
    #: Name to shape of the batch that was measured.
    inputs: Mapping[str, tuple[int, ...]]
    #: The user's recipe.
    recipe: MemoryVariant
    #: Other recipes, the nearest first.
    alternatives: tuple[MemoryVariant, ...]
    #: Bytes that the user's GPU has; ``None`` when they did not say.
    budget: int | None = None
    #: Memory of common cards, in GiB.
    cards: tuple[int, ...] = CARDS
    #: The cards that the user named, in their order; with ``gpu: cheapest`` all that compute what
    #: the recipe asks for, the cheapest first.
    gpus: tuple[PlannedGpu, ...] = ()
    #: Whether one of them is enough: the cheapest that does is looked for.
    any_gpu: bool = False
    #: Processes, each with a GPU of its own.
    processes: int = 1
    #: What they divide among them: ``DDP``, ``ZeRO-3``, ``FSDP`` ...; empty for a single process.
    sharding: str = ""
    #: What the numbers rest on.
    assumptions: tuple[str, ...] = ()
    #: What is not in them.
    notes: tuple[Note, ...] = ()

    @property
    def place(self) -> str:
        """Such as ``one GPU`` and ``each of 8 GPUs, ZeRO-3``."""
        several = f"each of {self.processes} GPUs, {self.sharding}"
        return several if self.sharding else "one GPU"

    def nearest(self, budget: int) -> MemoryVariant | None:
        """The first alternative that fits for sure."""
        return next((one for one in self.alternatives if one.fits(budget)), None)

    def first_fitting(self, one: MemoryVariant) -> PlannedGpu | None:
        """The first of the named cards that this surely fits into."""
        return next((gpu for gpu in self.gpus if one.fits(gpu.memory)), None)

    @property
    def columns(self) -> tuple[tuple[str, int], ...]:
        """The cards of the table, name and bytes: those that were named, else common sizes. With
        ``gpu: cheapest`` those that the recipe or an alternative first fits into."""
        if not self.gpus:
            return tuple((f"{card} GB", card * GIB) for card in self.cards)
        shown = self.gpus
        if self.any_gpu:
            first = [self.first_fitting(one) for one in (self.recipe, *self.alternatives)]
            shown = tuple(gpu for gpu in self.gpus if gpu in first) or self.gpus[-1:]
        return tuple((gpu.name, gpu.memory) for gpu in shown)

    def to_json(self) -> dict[str, Any]:
        """The fields, with the sums beside each variant, so that a reader needs no arithmetic."""
        data = asdict(self)
        data["recipe"] = self._variant(self.recipe)
        data["alternatives"] = [self._variant(one) for one in self.alternatives]
        return data

    def _variant(self, one: MemoryVariant) -> dict[str, Any]:
        return {
            "name": one.name,
            "changes": dict(one.changes),
            "parts": [asdict(part) for part in one.parts],
            "total": one.total,
            "low": one.low,
            "high": one.high,
            "fits": (
                {gpu.name: one.fits(gpu.memory) for gpu in self.gpus}
                or {str(card): one.fits(card * GIB) for card in self.cards}
            ),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MemoryPlan:
        return from_json(cls, data)
