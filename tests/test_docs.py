"""What the documentation says is what the tool prints."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

from tools import architecture_picture, recipe_table, rules_page

README = rules_page.README.read_text(encoding="utf-8")
STALE = "stale; run `python -m tools.rules_page` and commit the result"


def quoted() -> list[object]:
    """Each command that the README quotes, with its quoted output."""
    return [
        pytest.param(
            match[2],
            match[3],
            id=match[2][:40],
            marks=[] if "--help" in match[2] else [pytest.mark.slow],
        )
        for match in rules_page.QUOTED.finditer(README)
    ]


def test_the_page_of_rules_is_fresh() -> None:
    """Somebody who changes a rule's docstring changes the page with it."""
    assert rules_page.PAGE.read_text(encoding="utf-8") == rules_page.rules_page(
        rules_page.own_rules()
    ), STALE


@pytest.mark.parametrize(("command", "block"), quoted())
def test_quoted_output_is_what_the_command_prints(command: str, block: str) -> None:
    for package in ("torch", "transformers", "peft"):
        version = re.search(rf"\b{package} (\d\S*?)(,|\s)", block)
        if version and version[1] != importlib.metadata.version(package):
            pytest.skip(f"the README was written on {package} {version[1]}")
    now = rules_page.comparable(rules_page.output_of(command))
    assert now == rules_page.comparable(block), f"README.md: {STALE}"


def test_a_block_whose_numbers_alone_differ_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who adds a rule commits docs/rules.md and not the speed of their machine."""
    block = "peft 0.21.2 · 3.82 B · 14.8 s\npeak 1.2 GiB, load 0.5\n"
    monkeypatch.setattr(rules_page, "output_of", lambda command: new)
    new = "peft 0.21.2 · 3.82 B · 1 min 2 s\npeak 900 MiB, load 12.25\n"
    assert rules_page.fresh_block("check m", block) == block
    for old, changed in (("0.21.2", "0.21.3"), ("3.82 B", "4 B"), ("peak", "most")):
        new = block.replace(old, changed)
        assert rules_page.fresh_block("check m", block) == new


def test_every_digit_of_a_code_has_a_topic_here_and_in_the_instructions() -> None:
    """A rule whose topic has no digit cannot be named; one with a digit unknown here is Other."""
    assert sorted(rules_page.TOPICS) == [f"LD{digit}" for digit in range(10)]
    assert {rule.code[:3] for rule in rules_page.own_rules()} <= set(rules_page.TOPICS)
    text = (rules_page.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    step = re.search(r"The first digit is the topic: (.*?)\.\n", text, re.DOTALL)
    assert step is not None
    assert re.findall(r"\b(\d) ", step[1]) == list("0123456789")


def test_every_option_and_command_of_the_readme_exists() -> None:
    """An option that was renamed must not survive in the prose or in an example."""
    prose = rules_page.QUOTED.sub("", README)
    helps = "".join(
        rules_page.output_of(f"{command} --help")
        for command in ("", "check", "fix", "verify", "dry-run", "census", "env")
    )
    lines = [line for line in prose.splitlines() if "pip " not in line]
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", "\n".join(lines)))
    assert {option for option in options if not re.search(rf"{option}\b", helps)} == set()
    commands = set(re.findall(r"`lora-doctor ([a-z-]+)", prose))
    assert {name for name in commands if f"\n  {name} " not in helps} == set()


def test_the_table_of_recipe_keys_is_fresh() -> None:
    """Who adds a key to the recipe finds it in the README, aliases and all."""
    assert recipe_table.PLACE.search(README)
    assert recipe_table.fresh(README) == README, STALE
    for spelling in ("--class", "--batch-size", "`model_class`", "`fp16`"):
        assert spelling in recipe_table.table()


def test_links_of_the_documents_lead_somewhere() -> None:
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/rules.md",
        "docs/architecture.md",
        "docs/safety.md",
    ):
        path = rules_page.ROOT / name
        text = path.read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {heading.lower().replace(" ", "-") for heading in headings}
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("#"):
                assert target[1:] in anchors, f"{name}: {target}"
            elif "://" not in target:
                assert (path.parent / target).exists(), f"{name}: {target}"


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
