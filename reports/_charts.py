"""Charts of the page as plain geometry: bars and lines, each with words that say the same.

The template draws them as SVG stretched to their place, so that they fit a phone; what is written
beside them is HTML. A drawing is :data:`WIDTH` by :data:`HEIGHT` units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_doctor.reports._text import many, number, visible

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis
    from lora_doctor.results.observations import LayerReading
    from lora_doctor.results.verification import Verification

WIDTH, HEIGHT = 1000, 100
#: Largest finite number of a dtype.
LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.4e38}
#: Layers that are drawn and listed.
MOST_LAYERS = 160
#: Decades that are drawn at most.
_DECADES = 12


@dataclass(frozen=True)
class Segment:
    """A part of a bar, from ``x`` on; ``kind`` is one of the classes that the style sheet has."""

    x: float
    width: float
    kind: str


@dataclass(frozen=True)
class Bar:
    """An upright bar; ``over``: the value is not finite, or at the limit."""

    x: float
    y: float
    width: float
    height: float
    over: bool


@dataclass(frozen=True)
class LayerRow:
    path: str
    activation: str
    gradient: str


@dataclass(frozen=True)
class BarChart:
    """Bars on a logarithmic axis. ``limit_y``: where the limit of the dtype lies, where it is on
    the drawing."""

    title: str
    words: str
    top: str
    bottom: str
    bars: tuple[Bar, ...]
    limit_y: float | None = None
    limit: str = ""


@dataclass(frozen=True)
class LayerCharts:
    """Largest activations and gradients of the layers, as charts and as rows."""

    charts: tuple[BarChart, ...]
    rows: tuple[LayerRow, ...]
    caption: str
    hidden: int


@dataclass(frozen=True)
class Line:
    """Losses of one batch in one run; ``kind``: which run and which batch, as classes
    of the style sheet."""

    kind: str
    label: str
    points: tuple[str, ...]
    breaks: tuple[float, ...]


@dataclass(frozen=True)
class LossChart:
    words: str
    top: str
    bottom: str
    steps: int
    lines: tuple[Line, ...]


def layer_charts(diagnosis: Diagnosis) -> LayerCharts | None:
    """The layers of the run that counts now; ``None`` where none was read."""
    run = diagnosis.after or diagnosis.before
    if run is None or not run.observations.layers:
        return None
    every = run.observations.layers
    layers = every[:MOST_LAYERS]
    dtype = _dtype(diagnosis, run)
    charts = [_activations(layers, dtype), _gradients(layers)]
    rows = tuple(
        LayerRow(
            visible(one.path, 120),
            number(one.max_abs) if one.finite else "not finite",
            "none" if one.gradient_norm is None else number(one.gradient_norm),
        )
        for one in layers
    )
    drawn = tuple(chart for chart in charts if chart is not None)
    return LayerCharts(drawn, rows, _caption(run), len(every) - len(layers)) if drawn else None


def _dtype(diagnosis: Diagnosis, run: Verification) -> str:
    """The dtype whose limit counts: float16 where the recipe asks for it, else that of the run."""
    recipe = diagnosis.fixed_recipe or diagnosis.recipe
    wanted = recipe.mixed_precision or recipe.get("dtype")
    return str(wanted) if wanted in LARGEST else run.dtype


def _caption(run: Verification) -> str:
    if run.observations.user_weights:
        return f"Measured on {many(len(run.observations.layers), 'layer')} with the real weights."
    return (
        "Measured on the tiny model, whose weights are random: the values are not those of the "
        "real weights (--depth full measures these)."
    )


def _activations(layers: Sequence[LayerReading], dtype: str) -> BarChart | None:
    limit = LARGEST.get(dtype)
    values = [one.max_abs if one.finite else math.inf for one in layers]
    chart = bar_chart("Largest activation of each layer", values, limit)
    if chart is None:
        return None
    infinite = sum(not one.finite for one in layers)
    largest = max(layers, key=lambda one: one.max_abs if one.finite else math.inf)
    size = "not finite" if not largest.finite else number(largest.max_abs)
    words = f"{chart.title}: the largest is {size} in {visible(largest.path, 120)}"
    if infinite > 1:
        words += f", {infinite} are not finite"
    if limit is not None:
        words += f"; the limit of {dtype} is {_size(limit)}"
    limit_words = f"limit of {dtype}: {_size(limit)}" if limit is not None else ""
    return _with(chart, words, limit_words)


def _gradients(layers: Sequence[LayerReading]) -> BarChart | None:
    values = [one.gradient_norm or 0.0 for one in layers]
    chart = bar_chart("Gradient norm of the adapters of each layer", values, None)
    if chart is None:
        return None
    seen = [value for value in values if value]
    without = len(values) - len(seen)
    words = f"{chart.title}: from {number(min(seen))} to {number(max(seen))}"
    if without:
        words += f"; {many(without, 'layer')} without a gradient"
    return _with(chart, words, "")


def _with(chart: BarChart, words: str, limit: str) -> BarChart:
    return BarChart(chart.title, words, chart.top, chart.bottom, chart.bars, chart.limit_y, limit)


def _size(value: float) -> str:
    return f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"


def bar_chart(title: str, values: Sequence[float], limit: float | None) -> BarChart | None:
    """A bar for each value; infinity reaches the top, zero has none. A limit that is near enough is
    on the drawing. ``None`` where no value is a positive number."""
    finite = [value for value in values if 0 < value < math.inf]
    if not finite:
        return None
    near = limit is not None and limit < 1e9
    top = math.ceil(math.log10(max([*finite, limit if near and limit else 0.0])) + 0.1)
    # A decade below the smallest, so that it can be seen.
    bottom = max(math.floor(math.log10(min(finite))) - 1, top - _DECADES)
    span = top - bottom
    pitch = WIDTH / len(values)
    width = round(min(pitch * 0.72, 60), 2)

    def y_of(value: float) -> float:
        place = (math.log10(value) - bottom) / span if value < math.inf else 1.0
        return round(HEIGHT - HEIGHT * min(max(place, 0.02), 1.0), 2)

    bars = [
        Bar(
            round(index * pitch + (pitch - width) / 2, 2),
            y_of(value),
            width,
            round(HEIGHT - y_of(value), 2),
            value == math.inf or (near and limit is not None and value >= limit),
        )
        for index, value in enumerate(values)
        if value > 0
    ]
    return BarChart(
        title, title, _power(top), _power(bottom), tuple(bars),
        y_of(limit) if near and limit else None,
    )  # fmt: skip


def _power(exponent: float) -> str:
    """A power of ten as people write it: 1,000, 0.01 or 1e-07."""
    if 0 <= exponent <= 6:
        return f"{10 ** int(exponent):,}"
    return f"{10.0 ** int(exponent):.0g}"


def loss_chart(diagnosis: Diagnosis) -> LossChart | None:
    """The losses of every batch, before and after the fixes; ``None`` where none was taken."""
    named = [("before", "before the fixes", diagnosis.before)]
    named.append(("after", "after the fixes", diagnosis.after))
    if diagnosis.after is None:
        named = [("after", "", diagnosis.before)]
    taken = [
        (f"{kind} batch-{index}", label, visible(batch.kind, 60), batch.losses[:200])
        for kind, label, run in named
        for index, batch in enumerate(run.batches[:4] if run else ())
        if len(batch.losses) > 1
    ]
    finite = [loss for *_, losses in taken for loss in losses if math.isfinite(loss)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    steps = max(len(losses) for *_, losses in taken)
    lines = tuple(
        Line(kind, ", ".join(filter(None, (f"{batch} batch", label, _change(losses)))),
             *_points(losses, low, high, steps))
        for kind, label, batch, losses in taken
    )  # fmt: skip
    words = "Loss on the same batch, step by step: " + "; ".join(line.label for line in lines)
    return LossChart(words, number(high), number(low), steps, lines)


def _change(losses: Sequence[float]) -> str:
    return f"{number(losses[0])} → {number(losses[-1])}"


def _points(
    losses: Iterable[float], low: float, high: float, steps: int
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Lines through what is finite, and the places of the others."""
    span = (high - low) or 1.0
    parts: list[list[str]] = [[]]
    breaks = []
    for index, loss in enumerate(losses):
        x = round(10 + index * (WIDTH - 20) / max(steps - 1, 1), 1)
        if not math.isfinite(loss):
            breaks.append(x)
            parts.append([])
            continue
        y = round(HEIGHT - 6 - (HEIGHT - 12) * (loss - low) / span, 1)
        parts[-1].append(f"{x},{y}")
    # A line of one point is drawn only when it goes somewhere, if only to itself.
    drawn = tuple(" ".join(part if len(part) > 1 else part * 2) for part in parts if part)
    return drawn, tuple(breaks)


def segments(sizes: Sequence[tuple[str, float]], scale: float) -> tuple[Segment, ...]:
    """Parts of a bar side by side, ``scale`` being its full width."""
    x, made = 0.0, []
    for kind, size in sizes:
        width = WIDTH * size / scale if scale else 0.0
        if width > 0:
            made.append(Segment(round(x, 2), round(width, 2), kind))
        x += width
    return tuple(made)
