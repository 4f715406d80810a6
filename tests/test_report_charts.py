"""The pictures of a report, each with its words; and what a page that is passed on leaves out."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from lora_doctor import reports
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.reports._charts import HEIGHT, WIDTH, bar_chart, layer_charts, loss_chart
from lora_doctor.reports._memory_chart import memory_view
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.verification import BatchReport
from tests import diagnoses


def with_losses(before: tuple[float, ...], after: tuple[float, ...] | None = None) -> Diagnosis:
    def run(losses: tuple[float, ...]) -> object:
        batch = BatchReport("text", {"input_ids": (2, 16)}, "labels", losses)
        return diagnoses.verification(batches=(batch,))

    found = diagnoses.healthy()
    return replace(found, before=run(before), after=None if after is None else run(after))


def test_losses_before_and_after_are_on_one_scale() -> None:
    chart = loss_chart(with_losses((4.0, 3.0, 2.0), (4.0, 2.0, 1.0)))
    assert chart is not None and (chart.top, chart.bottom, chart.steps) == ("4", "1", 3)
    labels = [line.label for line in chart.lines]
    assert labels == ["text batch, before the fixes, 4 → 2", "text batch, after the fixes, 4 → 1"]
    for label in labels:
        assert label in chart.words
    ends = [float(line.points[0].split(" ")[-1].split(",")[1]) for line in chart.lines]
    assert ends[0] < ends[1], "the lower loss is drawn lower"


def test_a_loss_that_is_no_number_interrupts_the_line() -> None:
    chart = loss_chart(with_losses((3.0, 2.0, math.nan, 1.0)))
    assert chart is not None
    assert len(chart.lines[0].points) == 2 and len(chart.lines[0].breaks) == 1
    assert loss_chart(with_losses(())) is None
    assert loss_chart(with_losses((math.nan, math.nan))) is None


def test_layers_are_held_against_the_limit_of_the_dtype() -> None:
    found = diagnoses.every_section()
    half = replace(found, fixed_recipe=Recipe({"fp16": True}))
    charts = layer_charts(half)
    assert charts is not None
    activations, gradients = charts.charts
    assert "10,000" in activations.words or "1e+04" in activations.words
    assert "limit of float16 is 65,504" in activations.words and activations.limit_y is not None
    assert min(bar.y for bar in activations.bars) > activations.limit_y, "all below the limit"
    assert "1 layer without a gradient" in gradients.words and len(gradients.bars) == 3
    assert charts.rows[0].gradient == "none" and "random" in charts.caption
    wide = layer_charts(replace(found, fixed_recipe=Recipe({"dtype": "bfloat16"})))
    assert wide is not None and wide.charts[0].limit_y is None
    assert "3.39e+38" in wide.charts[0].limit
    assert layer_charts(diagnoses.phi3()) is None, "nothing was read"


@pytest.mark.parametrize(
    "values", [[1e-30, 1e30], [math.inf, 1.0], [65504.0], [0.0, 2.0], [1.0] * 400]
)
def test_bars_stay_on_the_drawing(values: list[float]) -> None:
    chart = bar_chart("title", values, 65504.0)
    assert chart is not None and chart.bars
    for bar in chart.bars:
        assert bar.x >= 0 and bar.x + bar.width <= WIDTH + 0.1
        assert bar.y >= 0 and bar.height > 0 and bar.y + bar.height <= HEIGHT + 0.1
    assert any(bar.over for bar in chart.bars) == any(value >= 65504 for value in values)


def test_nothing_to_draw_draws_nothing() -> None:
    assert bar_chart("title", [], None) is None
    assert bar_chart("title", [0.0, math.inf, math.nan], None) is None


def test_memory_is_a_bar_against_the_budget_and_in_words() -> None:
    found = replace(diagnoses.healthy(), memory_plan=diagnoses.memory_plan(budget=16 << 30))
    view = memory_view(found)
    assert view is not None and view["tone"] == "error"
    own, four_bit = view["rows"]
    assert (own.name, own.is_recipe, four_bit.name) == ("this recipe", True, "4-bit")
    assert "frozen weights 14.0 GiB" in own.words and "activations 5.0 GiB" in own.words
    ends = [part.x + part.width for part in own.bar]
    assert ends == sorted(ends) and ends[-1] > view["budget_x"] > four_bit.bar[-1].x
    assert own.low_x < own.high_x <= WIDTH
    assert [fit.words for fit in own.fits] == ["does not fit"] * 2 + ["fits"] * 3
    assert view["precision"] == "Weights in bfloat16; no autocast."
    page = reports.render(found, "html")
    assert f'aria-label="{own.words}"' in page and "within 5 %" in page


def test_compute_dtype_and_autocast_are_named() -> None:
    found = replace(
        diagnoses.healthy(), memory_plan=diagnoses.memory_plan(),
        recipe=Recipe({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16", "bf16": True}),
    )  # fmt: skip
    view = memory_view(found)
    assert view is not None
    assert "compute dtype bfloat16; autocast to bfloat16." in view["precision"]


# --- what is left out ---


def seen(page: str) -> str:
    return re.sub(r"<[^>]+>", "", page)


def test_texts_of_rows_are_on_the_page_only_where_they_were_asked_for() -> None:
    """A page is mailed around; the counts are there all the same, as bars."""
    found = diagnoses.healthy()
    by_default = reports.render(replace(found, supervision=diagnoses.supervision()), "html")
    assert " private" not in by_default and "--samples" in by_default
    words = "row 2: 2 of 7 tokens supervised, 2 tokens cut off"
    assert f'aria-label="{words}"' in by_default
    assert 'class="part-supervised"' in by_default and 'class="part-cut"' in by_default
    asked = diagnoses.supervision(samples="all")
    assert " private" in seen(reports.render(replace(found, supervision=asked), "html"))
    terminal = reports.render(replace(found, supervision=diagnoses.supervision()), "full")
    assert " private" in terminal
