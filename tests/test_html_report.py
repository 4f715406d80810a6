"""The HTML report, as text and in a real browser: a page about hostile models stays harmless."""

from __future__ import annotations

import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_doctor import reports
from lora_doctor.reports._picture import picture
from lora_doctor.results.note import Note
from lora_doctor.results.verification import AdapterGroup
from tests import chromium, diagnoses

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror="document.title=1">',
    "'onmouseover='alert(1)' x='",
    "{{7*7}}{% for x in y %}",
    "</script><script>document.title='pwned'</script>",
    "<!--<script>",
    "]]></style><style>*{display:none}</style>",
    "javascript:alert(1)",
    "</title><svg/onload=alert(1)>",
    "\u202egnp.exe\u2066",
    "\x1b[31mred\x00\x07",
    "\u2028\u2029\ud800",
    "&lt;b&gt;&amp;",
    "n" * 10_000,
    "http://127.0.0.1:9/beacon.png",
]


# --- as text ---


class Elements(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open not in ("script", "style"):
            self.text.append(data)


def embedded(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="diagnosis">(.*?)</script>', page, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def template_tags() -> set[str]:
    source = resources.files("lora_doctor.reports").joinpath("report.html.j2").read_text("utf-8")
    return {tag for tag, _ in Elements(source).tags}


def meta_copy(page: str) -> list[str]:
    """What must not depend on data: names of tags and attributes, ids, classes and addresses."""
    parts = []
    for tag, attributes in Elements(page).tags:
        fixed = {
            k: v for k, v in attributes.items() if k in ("id", "class", "href", "src", "style")
        }
        parts.append(f"{tag} {sorted(attributes)} {sorted(fixed.items())}")
    return parts


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element_attribute_or_address(text: str) -> None:
    """The page about a hostile model has the very same elements as one about a harmless model."""
    hostile = reports.render(diagnoses.hostile(text), "html")
    harmless = [reports.render(diagnoses.hostile(name), "html") for name in ("a", "a.b", "a.*.b")]
    assert set(meta_copy(hostile)) <= {part for page in harmless for part in meta_copy(page)}
    assert {tag for tag, _ in Elements(hostile).tags} <= template_tags()


@settings(max_examples=30, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
@given(st.text(max_size=40) | st.sampled_from(HOSTILE).flatmap(lambda s: st.just(s * 2)))
def test_anything_renders_into_the_same_skeleton(text: str) -> None:
    page = reports.render(diagnoses.hostile(text or "x"), "html")
    assert {tag for tag, _ in Elements(page).tags} <= template_tags()
    for unseen in ("\u202e", "\x1b", "\x00", "\u2028"):
        assert unseen not in page
    page.encode()


@pytest.mark.parametrize("name", diagnoses.ALL)
def test_the_page_is_self_contained_and_small(name: str) -> None:
    page = reports.render(diagnoses.ALL[name](), "html")
    assert len(page.encode()) < 300_000
    for tag, attributes in Elements(page).tags:
        assert tag not in ("iframe", "object", "embed", "img", "form", "base")
        assert attributes.get("href", "#")[:1] == "#" or attributes["href"] == "data:,"
        assert not any(key.startswith("on") or key in ("src", "style") for key in attributes)
    assert page.count("<script") == 1


@pytest.mark.parametrize("text", ["x" * 10_000, "<&>" * 3_000])
def test_even_hostile_sizes_stay_below_the_limit(text: str) -> None:
    hostile = diagnoses.hostile(text)
    many = replace(hostile, findings=hostile.findings * 60, notes=(Note("step", text),) * 300,
                   passed=(text,) * 300, skipped=hostile.skipped * 300)  # fmt: skip
    page = reports.render(many, "html")
    assert len(page.encode()) < 300_000
    assert "more" in "".join(Elements(page).text)


@pytest.mark.parametrize("name", diagnoses.ALL)
def test_the_embedded_diagnosis_is_valid(name: str) -> None:
    """Also when it had to be cut: then it says so."""
    schema = json.loads(
        resources.files("lora_doctor").joinpath("schema/diagnosis-2.json").read_text("utf-8")
    )
    diagnosis = diagnoses.ALL[name]()
    data = embedded(reports.render(diagnosis, "html"))
    jsonschema.Draft202012Validator(schema).validate(data)
    if data["structure"] is None and diagnosis.structure is not None:
        assert any("cut to keep the page small" in note["text"] for note in data["notes"])


def test_the_embedded_diagnosis_cannot_end_its_element() -> None:
    page = reports.render(diagnoses.hostile("</script><!--\u2028&"), "html")
    body = page.split('id="diagnosis">')[1]
    assert body.index("</script>") == body.rindex("</script>")
    text = body[: body.index("</script>")]
    assert not set("<>&\u2028") & set(text)
    assert embedded(page)["findings"][0]["message"] == "</script><!--\u2028&"


def test_the_page_forbids_what_it_does_not_need() -> None:
    """The policy names our style sheet by its hash, so an injected one would be refused too."""
    page = reports.render(diagnoses.phi3(), "html")
    policy = next(
        attributes["content"] or ""
        for tag, attributes in Elements(page).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "unsafe" not in policy and "sha256-" in policy


def test_the_page_says_everything_in_order() -> None:
    text = " ".join(" ".join(Elements(reports.render(diagnoses.phi3(), "html")).text).split())
    places = [
        text.index(part)
        for part in (
            "1 error: this run would fail or learn nothing",
            "lora-doctor fix arch:phi3",
            "torch 2.13.0, transformers 5.23.0, peft 0.21.2",
            "entries that match nothing",
            "executed: PEFT attached 64 adapters",
            "name the fused projections",
            "lora-doctor explain LD202",
            "64 of 224 named",
            "Where the adapters sit",
            "gets adapters by the fixes",
            "Set by",
            "Time and memory",
            "4 passed",
            "2 skipped: not checked, so not passed",
        )
    ]
    assert places == sorted(places)


def test_nothing_proven_is_never_called_healthy() -> None:
    for build, words in (
        (diagnoses.undetermined, "Undetermined: nothing was proven"),
        (diagnoses.static_only, "Nothing found at depth static; training was not tried"),
    ):
        text = "".join(Elements(reports.render(build(), "html")).text)
        assert words in text
        assert "healthy" not in text.lower()


# --- the picture ---


def test_the_picture_tells_adapted_learning_and_idle_apart() -> None:
    drawn = picture(diagnoses.vision_language())
    assert drawn is not None
    states = {cell.description.split(":")[0]: cell.state for t in drawn.towers for cell in t.cells}
    assert states["model.visual.blocks.*.mlp.gate_proj"] == "idle"
    assert states["model.visual.blocks.*.attn.qkv"] == "none"
    assert states["model.language_model.layers.*.self_attn.q_proj"] == "learns"
    assert drawn.changes == {"-"}
    assert drawn.summary == "292 of 361 modules adapted"


def test_the_picture_tells_partly_and_not_run() -> None:
    diagnosis = diagnoses.phi3()
    assert diagnosis.before is not None
    half = AdapterGroup("model.layers.*.self_attn.o_proj", 2, 1, 1)
    drawn = picture(replace(diagnosis, before=replace(diagnosis.before, adapters=(half,))))
    assert drawn is not None
    states = {cell.label: cell.state for tower in drawn.towers for cell in tower.cells}
    assert states["o_proj"] == "partly"
    assert states["down_proj"] == "adapted"


def test_cells_stay_inside_their_tower_and_do_not_overlap() -> None:
    for build in diagnoses.ALL.values():
        drawn = picture(build())
        for tower in drawn.towers if drawn else ():
            seen = set()
            for cell in tower.cells:
                assert cell.x >= 0 and cell.x + cell.width <= 340
                assert cell.y >= 0 and cell.y + cell.height <= tower.height
                assert 0 <= cell.filled <= cell.width
                seen.add((cell.x, cell.y))
            assert len(seen) == len(tower.cells)


# --- in a browser ---


def write(folder: Path, diagnosis: Any) -> Path:
    path = folder / "report.html"
    path.write_text(reports.render(diagnosis, "html"), encoding="utf-8")
    return path


@pytest.mark.browser
@pytest.mark.parametrize("scripts", [True, False])
def test_the_page_is_read_without_scripts_and_asks_for_nothing(
    browser: chromium.Chromium, tmp_path: Path, scripts: bool
) -> None:
    path = write(tmp_path, diagnoses.phi3())
    page = browser.open(path, scripts=scripts)
    text = page.evaluate("document.body.innerText")
    for part in ("1 error: this run would fail", "that match nothing", "qkv_proj", "64 of 224"):
        assert part in text
    assert page.evaluate("document.querySelectorAll('main h2').length") == 7
    assert page.requests == [path.as_uri()]
    assert page.messages == []


@pytest.mark.browser
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_not_obeyed(
    browser: chromium.Chromium, tmp_path: Path, text: str
) -> None:
    """With scripts allowed by the browser: nothing runs, nothing is asked for, nothing hides."""
    path = write(tmp_path, diagnoses.hostile(text))
    page = browser.open(path)
    assert page.evaluate("document.title").startswith("lora-doctor: ")
    assert page.evaluate("document.scripts.length") == 1
    assert page.requests == [path.as_uri()] and page.messages == []
    shown = page.evaluate("document.querySelector('article h3').innerText")
    start = text.encode("ascii", "backslashreplace").decode()[:200]
    for raw, escape in (("\x1b", "\\x1b"), ("\x00", "\\x00"), ("\x07", "\\x07")):
        start = start.replace(raw, escape)
    assert shown.startswith(start)
    assert page.evaluate("getComputedStyle(document.querySelector('article')).display") != "none"


@pytest.mark.browser
@pytest.mark.parametrize("name", diagnoses.ALL)
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(
    browser: chromium.Chromium, tmp_path: Path, name: str, width: int
) -> None:
    page = browser.open(write(tmp_path, diagnoses.ALL[name]()), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_the_screenshot_is_not_blank(
    browser: chromium.Chromium, tmp_path: Path, dark: bool
) -> None:
    page = browser.open(write(tmp_path, diagnoses.vision_language()), dark=dark)
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(page.screenshot())).convert("RGB")
    assert image.width == 1200 and image.height > 3000
    assert len(image.getcolors(image.width * image.height)) > 100
    corner = sum(image.getpixel((2, 2)))
    assert corner < 150 if dark else corner > 600


@pytest.mark.browser
def test_every_cell_of_the_picture_is_painted(browser: chromium.Chromium, tmp_path: Path) -> None:
    page = browser.open(write(tmp_path, diagnoses.vision_language()))
    boxes = page.evaluate(
        "[...document.querySelectorAll('.tower svg > g')].map(g => {"
        " const b = g.getBoundingClientRect(); return [b.width, b.height]})"
    )
    assert len(boxes) == 16
    assert all(width > 60 and height > 20 for width, height in boxes)
    learns = page.evaluate("getComputedStyle(document.querySelector('.cell-learns .share')).fill")
    assert learns == "rgb(15, 118, 110)"
    hatch = page.evaluate("getComputedStyle(document.querySelector('.cell-idle .share')).fill")
    assert "hatch" in hatch


@pytest.mark.browser
def test_people_who_listen_get_headings_landmarks_and_named_pictures(
    browser: chromium.Chromium, tmp_path: Path
) -> None:
    page = browser.open(write(tmp_path, diagnoses.phi3()))
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            name = node.get("name", {}).get("value", "")
            roles.setdefault(node.get("role", {}).get("value", ""), []).append(name)
    assert {"banner", "main", "contentinfo", "region", "article"} <= roles.keys()
    assert "1 error: this run would fail or learn nothing" in roles["heading"]
    assert all(roles["image"]) and any("qkv_proj 0 of 32" in name for name in roles["image"])
    assert "Findings" in roles["region"]
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["phi3", "vision_language", "undetermined", "healthy"])
def test_contrast_is_enough_for_everybody(
    browser: chromium.Chromium, tmp_path: Path, name: str, dark: bool
) -> None:
    page = browser.open(write(tmp_path, diagnoses.ALL[name]()), dark=dark)
    assert page.evaluate(chromium.CONTRAST) == []


@pytest.mark.browser
def test_the_printed_page_shows_what_is_folded(browser: chromium.Chromium, tmp_path: Path) -> None:
    """Paper has nothing to click on."""
    page = browser.open(write(tmp_path, diagnoses.phi3()), media="print")
    heights = page.evaluate(
        "[...document.querySelectorAll('details:not([open]) > .inside')]"
        ".map(d => d.checkVisibility({contentVisibilityAuto: true})"
        " && d.getBoundingClientRect().height)"
    )
    assert heights and all(height and height > 10 for height in heights)


#: What must be none: colours that cannot be told apart, pictures without words, and the like.
_SEVERE = ("moderate", "serious", "critical")


@pytest.mark.browser
def test_axe_finds_nothing_serious(browser: chromium.Chromium, tmp_path: Path) -> None:
    """Every kind of section, on a desk and on a phone at night."""
    package = pytest.importorskip("axe_core_python")
    axe = Path(package.__file__).with_name("axe.min.js").read_text("utf-8")
    pages = {
        "every section": diagnoses.every_section(),
        "undetermined": diagnoses.undetermined(),
    }
    for name, diagnosis in pages.items():
        path = write(tmp_path, diagnosis)
        for width, dark in ((1200, False), (380, True)):
            page = browser.open(path, width=width, dark=dark)
            assert page.accessibility(axe, least=_SEVERE) == [], (name, width)
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><title>x</title><img src=x>", encoding="utf-8")
    assert any("image-alt" in one for one in browser.open(broken).accessibility(axe, least=_SEVERE))
