"""What the documentation says is what the tool prints."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

from lora_doctor.engine.rule import Rule
from tools import architecture_picture, quoted_output, recipe_table, rule_pages

TEXTS = {path: path.read_text(encoding="utf-8") for path in quoted_output.PAGES}
RULES = rule_pages.own_rules()
COMMANDS = quoted_output.ROOT / "docs" / "commands.md"
#: Lines with options of other programs.
_OF_OTHERS = re.compile(
    r"^.*\b(pip|pytest|accelerate|torchrun|benchmarks/|tests/|sbatch|nox|SBATCH|srun"
    r"|python \S+\.py)\b.*$",
    re.MULTILINE,
)
#: Options of the commands that a page is about.
_OF_COMMANDS = {"dry-run.md": {"--config", "--model", "--template"}}
STALE = "stale; run `python -m tools.pages` and commit the result"


def quoted() -> list[object]:
    """Each command that a page quotes, with its quoted output."""
    return [
        pytest.param(
            path.name,
            match[2],
            match[3],
            id=f"{path.stem}-{match[2][:40]}",
            marks=[] if "--help" in match[2] else [pytest.mark.slow],
        )
        for path, text in TEXTS.items()
        for match in quoted_output.QUOTED.finditer(text)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_the_page_of_a_rule_is_fresh(rule: type[Rule]) -> None:
    """Somebody who changes a rule's docstring or examples changes its page. What the page quotes of
    a run is compared where the examples are run, in tests/test_rules.py."""
    page = rule_pages.path_of(rule).read_text(encoding="utf-8")
    assert page == rule_pages.page(rule, rule_pages.quoted(rule)), STALE


def test_no_page_shows_where_somebody_has_their_files() -> None:
    pages = [*quoted_output.PAGES, *rule_pages.FOLDER.glob("*.md")]
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    assert re.findall(r"\S*/(?:lib/python3\S*|site-pac\w*)", text) == []


def test_the_index_of_the_rules_lists_every_page() -> None:
    assert rule_pages.INDEX.read_text(encoding="utf-8") == rule_pages.index(RULES), STALE
    pages = set(rule_pages.FOLDER.glob("*.md")) - {rule_pages.INDEX}
    assert pages == set(map(rule_pages.path_of, RULES))


@pytest.mark.parametrize(("page", "command", "block"), quoted())
def test_quoted_output_is_what_the_command_prints(page: str, command: str, block: str) -> None:
    for package in ("torch", "transformers", "peft"):
        version = re.search(rf"\b{package} (\d\S*?)(,|\s)", block)
        if version and version[1] != importlib.metadata.version(package):
            pytest.skip(f"the page was written on {package} {version[1]}")
    now = quoted_output.comparable(quoted_output.output_of(command))
    assert now == quoted_output.comparable(block), f"{page}: {STALE}"


def test_a_block_of_which_only_a_unit_differs_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who adds a rule commits its page and not the speed of their machine."""
    block = "peft 0.21.2 · 3.82 B · … s\npeak … GiB\n"
    monkeypatch.setattr(quoted_output, "output_of", lambda command: new)
    new = "peft 0.21.2 · 3.82 B · … ms\npeak … MiB\n"
    assert quoted_output.fresh_block("check m", block) == block
    for old, changed in (("0.21.2", "0.21.3"), ("3.82 B", "4 B"), ("peak", "most")):
        new = block.replace(old, changed)
        assert quoted_output.fresh_block("check m", block) == new


def test_a_page_holds_no_seconds_and_bytes_of_this_machine() -> None:
    assert quoted_output.output_of("--version")
    shown = "".join(match[3] for text in TEXTS.values()
                    for match in quoted_output.QUOTED.finditer(text))  # fmt: skip
    assert re.search(r"\d (s|ms|MiB)\b", shown) is None


def test_every_digit_of_a_code_has_a_topic_here_and_in_the_instructions() -> None:
    """A rule whose topic has no digit cannot be named; one with a digit unknown here has no row."""
    assert sorted(rule_pages.TOPICS) == [f"LD{digit}" for digit in range(10)]
    assert {rule.code[:3] for rule in RULES} <= set(rule_pages.TOPICS)
    text = (quoted_output.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    step = re.search(r"The first digit is the topic: (.*?)\.\n", text, re.DOTALL)
    assert step is not None
    assert re.findall(r"\b(\d) ", step[1]) == list("0123456789")


def test_every_option_and_command_of_the_pages_exists() -> None:
    """An option that was renamed must not survive in the prose or in an example."""
    helps = TEXTS[COMMANDS]
    names = set(re.findall(r"^  ([a-z-]+)  ", helps, re.MULTILINE))
    for path, text in TEXTS.items():
        prose = _OF_OTHERS.sub("", quoted_output.QUOTED.sub("", text))
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", prose))
        unknown = {option for option in options if not re.search(rf"{option}\b", helps)}
        assert unknown <= _OF_COMMANDS.get(path.name, set()), path.name
        assert set(re.findall(r"`lora-doctor ([a-z-]+)", prose)) <= names, path.name


def test_readme_help_and_site_name_the_same_commands() -> None:
    """Each command is in the README's table, and has its help on the page of commands."""
    names = set(re.findall(r"^  ([a-z-]+)  ", TEXTS[COMMANDS].split("Commands:")[1].split("```")[0],
                           re.MULTILINE))  # fmt: skip
    told = set(re.findall(r"<!-- output: lora-doctor ([a-z-]+) --help -->", TEXTS[COMMANDS]))
    readme = TEXTS[quoted_output.ROOT / "README.md"]
    table = readme[readme.index("## Commands") : readme.index("## Read on")]
    assert names == told
    assert {name for name in names if f"`{name}`" not in table
            and f"lora-doctor {name}" not in table} == set()  # fmt: skip


def test_the_table_of_recipe_keys_is_fresh() -> None:
    """Who adds a key to the recipe finds it on the page, aliases and all."""
    text = TEXTS[quoted_output.ROOT / "docs" / "check.md"]
    assert recipe_table.PLACE.search(text)
    assert recipe_table.fresh(text) == text, STALE
    for spelling in ("--class", "--batch-size", "`model_class`", "`fp16`"):
        assert spelling in recipe_table.table()


def test_links_of_the_documents_lead_somewhere() -> None:
    """In the repository; the site's own are checked where it is built."""
    root = quoted_output.ROOT
    for path in (*TEXTS, root / "CONTRIBUTING.md", *rule_pages.FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", text):
            if "://" in target:
                continue
            other = path.parent / target if target else path
            assert other.exists(), f"{path.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {heading.lower().replace(" ", "-") for heading in headings}
                assert anchor[1:] in anchors, f"{path.name}: {target}{anchor}"


def test_the_picture_of_the_rooms_is_the_contract_of_the_linter() -> None:
    """A newcomer's map: every room of the layers contract, in its order, arrows from the code."""
    page = architecture_picture.PAGE.read_text(encoding="utf-8")
    drawn = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert drawn is not None
    boxes = re.findall(r'^    (\w+)\["', drawn[1], re.MULTILINE)
    assert boxes == architecture_picture.layers()
    stale = "stale; run `python -m tools.architecture_picture` and commit the result"
    assert drawn[1] == architecture_picture.picture(), stale


def test_the_places_that_the_architecture_names_exist() -> None:
    page = architecture_picture.PAGE.read_text(encoding="utf-8")
    places = set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", page))
    root = architecture_picture.ROOT
    missing = {
        p for p in places if not ((root / p).exists() or (root / "lora_doctor" / p).exists())
    }
    assert len(places) > 20 and missing == set()
