"""The page and the totals of a census, as text and in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_doctor.census.page import render, totals
from lora_doctor.census.row import COLUMNS, Cell, Row
from lora_doctor.census.run import Census, load
from tests import chromium
from tools import census_rows

HOSTILE = "<script>alert(1)</script> | `x`"
VERSIONS = {"transformers": "5", "peft": "0"}
YES, NO, UNREACHED = Cell("yes"), Cell("no", HOSTILE), Cell("unknown", "not reached", False)


def small_census() -> Census:
    """Trains in every way; builds and trains with no recipe; needs a package that is not there."""
    good = Row("AutoModelForCausalLM", "good", "GoodForCausalLM", 10**9,
               {"r": 16, "target_modules": ["q"]}, dict.fromkeys(COLUMNS, YES))  # fmt: skip
    bad = Row("AutoModelForSeq2SeqLM", "bad", cells={**dict.fromkeys(COLUMNS, NO), "builds": YES})
    absent = Row("AutoModelForCausalLM", "absent", cells={
        **dict.fromkeys(COLUMNS, UNREACHED), "builds": Cell("no", "needs a package: timm"),
    })  # fmt: skip
    return Census(VERSIONS, (good, bad, absent))


def test_foreign_text_is_data_on_every_page() -> None:
    census = small_census()
    assert "<script>alert" not in render(census)
    assert "\\| `x`" in totals([census]) and "<script>" not in totals([census])


def test_the_totals_tell_what_builds_and_what_of_it_trains() -> None:
    text = totals([small_census()])
    assert "| all | 3 | 2 | 1 |" in text
    assert "Of 2 pairs that build, 1 train with the recipe" in text and "50.0 %" in text
    without, not_built = text.split("Not built, or no batch runs:")
    assert "`bad`" in without and "`absent` | causal LM | needs a package: timm" in not_built
    assert UNREACHED.reason not in text


def test_other_tasks_are_counted_by_themselves_and_with_the_rest() -> None:
    census = small_census()
    other = Row("AutoModelForAudioXVector", "sound", cells=dict.fromkeys(COLUMNS, YES))
    text = totals([Census(census.versions, (*census.rows, other))])
    assert "| audio X vector | 1 | 1 |" in text and "| all | 4 | 3 |" in text
    assert "Of 2 pairs for generation that build, 1 train" in text and "50.0 %" in text
    assert "Of 3 pairs that build, 2 train" in text and "66.7 %" in text


def test_a_census_is_read_back(tmp_path: Path) -> None:
    census = small_census()
    (tmp_path / "census.json").write_text(json.dumps(census.to_json()))
    assert load(tmp_path) == census


def test_the_rows_of_the_site_are_those_of_the_census() -> None:
    """docs/census_rows.json and docs/census.md are written from the same census."""
    data = json.loads(census_rows.FILE.read_text("utf-8"))
    page = (census_rows.FILE.parent / "census.md").read_text("utf-8")
    versions, rows = data["versions"], data["rows"]
    heading = f"## transformers {versions['transformers']}, peft {versions['peft']}\n"
    assert heading in page, "nox -s census_page writes both"
    total = page.partition(heading)[2].partition("| all | ")[2].partition(" |\n")[0]
    counts = [sum(name not in row["cells"] for row in rows) for name in COLUMNS]
    assert [int(number) for number in total.split(" | ")] == [len(rows), *counts]
    text = census_rows.table(data)
    assert text.count("\n| `") == len(rows)
    cells = {line.replace("\\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
    assert cells == {len(COLUMNS) + 4}, "a reason with a bar does not break its row"


def test_foreign_text_is_data_in_the_rows_too() -> None:
    data = json.loads(census_rows.written(Census({**VERSIONS, "torch": "2"}, small_census().rows)))
    text = census_rows.table(data)
    assert "\\<script\\>" in text and "<script>" not in text
    good, bad, absent = text.splitlines()[-3:]
    assert good.count("✓") == len(COLUMNS) and "`q`" in good
    assert bad.count("✗") == len(COLUMNS) - 1 and bad.count("alert") == 1
    assert absent.count("·") == len(COLUMNS) - 1 and UNREACHED.reason not in absent


# --- in a browser ---

SHOWN = "[...document.querySelectorAll('.rows tbody:not([hidden]) th')].map(h => h.innerText)"


def write(folder: Path) -> Path:
    path = folder / "census.html"
    path.write_text(render(small_census()), encoding="utf-8")
    return path


def ask(page: chromium.Page, element: str, value: str, event: str) -> list[str]:
    """Fill in one element as a reader would; the names of the rows that are left."""
    page.evaluate(
        f"(() => {{ const e = document.getElementById('{element}'); e.value = '{value}';"
        f" e.dispatchEvent(new Event('{event}')); }})()"
    )
    return [name.split()[0] for name in page.evaluate(SHOWN)]


@pytest.mark.browser
def test_rows_are_searched_and_filtered(browser: chromium.Chromium, tmp_path: Path) -> None:
    path = write(tmp_path)
    page = browser.open(path)
    assert ask(page, "search", "", "input") == ["good", "bad", "absent"]
    assert ask(page, "search", "CAUSAL", "input") == ["good", "absent"]
    assert ask(page, "search", "causal timm", "input") == ["absent"]
    assert page.evaluate("document.getElementById('count').innerText") == "1 of 3"
    assert ask(page, "search", "nothing of the kind", "input") == []
    assert ask(page, "search", "", "input") == ["good", "bad", "absent"]
    assert ask(page, "filter", "builds:yes", "change") == ["good", "bad"]
    assert ask(page, "filter", "recipe:no", "change") == ["bad", "absent"]
    assert page.requests == [path.as_uri()] and page.messages == []


@pytest.mark.browser
def test_a_link_finds_what_was_looked_for(browser: chromium.Chromium, tmp_path: Path) -> None:
    """The address holds the search, so that it can be sent to somebody."""
    page = browser.open(write(tmp_path))
    ask(page, "search", "causal", "input")
    ask(page, "filter", "recipe:yes", "change")
    asked = page.evaluate("location.hash")
    again = browser.open(write(tmp_path))
    assert len(again.evaluate(SHOWN)) == 3
    again.evaluate(f"location.hash = {json.dumps(asked)}")
    assert ask(again, "count", "", "none") == ["good"]


@pytest.mark.browser
def test_without_scripts_the_whole_table_is_there(
    browser: chromium.Chromium, tmp_path: Path
) -> None:
    page = browser.open(write(tmp_path), scripts=False)
    assert len(page.evaluate(SHOWN)) == 3
    assert not page.evaluate("document.querySelector('.search').checkVisibility()")
    assert page.evaluate("document.querySelectorAll('details').length") == 3


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(
    browser: chromium.Chromium, tmp_path: Path, width: int
) -> None:
    page = browser.open(write(tmp_path), width=width)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_enough_for_everybody(
    browser: chromium.Chromium, tmp_path: Path, dark: bool
) -> None:
    assert browser.open(write(tmp_path), dark=dark).evaluate(chromium.CONTRAST) == []


def test_the_page_says_how_many_rows_it_holds() -> None:
    page = render(small_census())
    assert "<h2>3 rows, one for each pair" in page and 'aria-label="3 rows"' in page


@pytest.mark.browser
def test_on_a_phone_the_tables_scroll_with_a_cue(
    browser: chromium.Chromium, tmp_path: Path
) -> None:
    """The name of a row stays in sight; with a keyboard the table is reached and scrolled."""
    page = browser.open(write(tmp_path), width=400)
    cues = "[...document.querySelectorAll('.cue')].map(c => c.checkVisibility())"
    assert page.evaluate(cues) == [True, True]
    table = "document.querySelector('.wide')"
    assert page.evaluate(f"{table}.scrollWidth > {table}.clientWidth && {table}.tabIndex") == 0
    page.evaluate(f"{table}.scrollLeft = 200")
    name = "document.querySelector('.rows tbody th').getBoundingClientRect()"
    assert page.evaluate(f"{name}.left") >= 0
    assert browser.open(write(tmp_path), width=1300).evaluate(cues) == [False, False]


@pytest.mark.browser
def test_long_tables_of_the_site_are_searched(browser: chromium.Chromium, tmp_path: Path) -> None:
    """docs/census.md is plain Markdown; the site's script makes its tables searchable."""
    script = Path(__file__).parent.parent / "docs" / "_static" / "search_tables.js"
    rows = "".join(f"<tr><td>model{n}</td><td>causal LM</td></tr>" for n in range(10))
    path = tmp_path / "page.html"
    path.write_text(
        "<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>Tables</title>"
        f"<main><table id='long'><tbody>{rows}</tbody></table>"
        "<table id='short'><tbody><tr><td>one</td></tr></tbody></table></main>"
        f"<script>{script.read_text(encoding='utf-8')}</script>",
        encoding="utf-8",
    )
    page = browser.open(path)
    assert page.evaluate("document.querySelectorAll('input').length") == 1
    page.evaluate(
        "(() => { const e = document.querySelector('input'); e.value = 'CAUSAL model7';"
        " e.dispatchEvent(new Event('input')); })()"
    )
    shown = (
        "[...document.querySelectorAll('#long tr:not([hidden])')].map(r => r.cells[0].innerText)"
    )
    assert page.evaluate(shown) == ["model7"]
    assert page.evaluate("document.querySelector('[role=status]').innerText") == "1 of 10"
    assert page.messages == []
