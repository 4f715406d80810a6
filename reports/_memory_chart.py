"""The memory plan for the page: each variant as a stacked bar against the budget, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_doctor.reports import _memory
from lora_doctor.reports._charts import WIDTH, Segment, segments
from lora_doctor.reports._text import visible
from lora_doctor.results.memory_parts import ACTIVATIONS, LOSS_AND_BACKWARD, WEIGHTS
from lora_doctor.text import gib

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.memory_plan import MemoryPlan, MemoryVariant

#: Kinds of segments, as the style sheet and the legend name them.
KINDS: Mapping[str, str] = {
    "weights": "frozen weights",
    "trained": "trained weights, gradients, optimizer",
    "activations": "activations",
    "backward": "logits, loss, backward",
    "reserve": "allocator and CUDA context",
}
_FITS = {True: ("passed", "✓", "fits"), False: ("failed", "✗", "does not fit"),
         None: ("skipped", "?", "not sure")}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """Whether a variant fits a card. ``mark`` is for the eyes, ``words`` for the ears."""

    card: str
    status: str
    mark: str
    words: str


@dataclass(frozen=True)
class VariantRow:
    """A recipe: its bar, its total and range, and which cards it fits. ``low_x`` and ``high_x``:
    the range on the bar, where it is known."""

    name: str
    is_recipe: bool
    bar: tuple[Segment, ...]
    words: str
    total: str
    between: str
    low_x: float | None
    high_x: float | None
    fits: tuple[Fit, ...]


def memory_view(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """Everything that the page shows of the plan; ``None`` where there is none."""
    plan = diagnosis.memory_plan
    if plan is None:
        return None
    every = (plan.recipe, *plan.alternatives)
    scale = float(max([plan.budget or 0, *(one.high or one.low for one in every)])) or 1.0
    return {
        "place": plan.place,
        "headline": _memory.headline(plan),
        "precision": _memory.precision(diagnosis),
        "range": _memory.RANGE,
        "tone": _tone(plan),
        "rows": [_row(plan, one, scale) for one in every],
        "cards": [name for name, _ in plan.columns],
        "legend": [(kind, words) for kind, words in KINDS.items()],
        "budget_x": round(WIDTH * plan.budget / scale, 2) if plan.budget else None,
        "budget": gib(plan.budget) if plan.budget else "",
        "scale": gib(int(scale)),
        "parts": _memory.parts(plan),
        "remarks": _memory.remarks(plan),
    }


def _tone(plan: MemoryPlan) -> str:
    """Of the recipe in its budget, or on the largest card."""
    sizes = [size for _, size in plan.columns]
    fits = [plan.recipe.fits(size) for size in ([plan.budget] if plan.budget else sizes)]
    if True in fits:
        return "good"
    return "info" if None in fits else "error" if plan.budget is not None else "warning"


def _row(plan: MemoryPlan, one: MemoryVariant, scale: float) -> VariantRow:
    sizes = _sizes(one)
    total = gib(one.total) if one.total is not None else f"at least {gib(one.low)}"
    between = f"{gib(one.low)} to {gib(one.high)}" if one.high is not None else ""
    told = ", ".join(f"{KINDS[kind]} {gib(int(size))}" for kind, size in sizes if size)
    name = _memory.variant_name(plan, one)
    words = f"{name}: {total}{f', {between}' if between else ''}: {told}"
    fits = tuple(Fit(card, *_FITS[one.fits(size)]) for card, size in plan.columns)
    at = (lambda size: round(WIDTH * size / scale, 2)) if one.high is not None else None
    return VariantRow(
        visible(name, 120), one is plan.recipe, segments(sizes, scale), visible(words, 400), total,
        between, at(one.low) if at else None, at(one.high) if at else None, fits,
    )  # fmt: skip


def _sizes(one: MemoryVariant) -> list[tuple[str, float]]:
    """Bytes of each kind of segment; parts that are missing count as nothing."""
    sums = dict.fromkeys(KINDS, 0.0)
    for part in one.parts:
        sums[_kind(part.name)] += part.bytes or 0
    return list(sums.items())


def _kind(name: str) -> str:
    if name in WEIGHTS:
        return "weights"
    if name == ACTIVATIONS:
        return "activations"
    if name == LOSS_AND_BACKWARD:
        return "backward"
    return "trained" if name in ("trained weights", "gradients", "optimizer state") else "reserve"
