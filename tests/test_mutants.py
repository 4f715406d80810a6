"""Which tests are run for a changed rule, and what is said of how that came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import forked_tests, mutants

TEXT = """
CODES = ("ACME407",)


def found(script):
    return [one for one in script if one.rule == "ACME407"]


@pytest.mark.parametrize("code", ["ACME402"])
def test_of_another(code):
    assert code


def test_by_the_helper():
    assert found([])


def test_by_its_code():
    assert "ACME407"
"""


def test_the_tests_of_a_rule_are_those_that_name_it() -> None:
    """In decorators, too, and by a function of the same file."""
    assert mutants.naming("ACME407", TEXT) == ["test_by_the_helper", "test_by_its_code"]
    assert mutants.naming("ACME402", TEXT) == ["test_of_another"]


def test_those_that_build_no_model_come_first(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    for name in ("test_aaa.py", "test_rule_branches.py", "test_rules.py"):
        (folder / name).write_text('def test_it():\n    assert "ACME407"\n')
    commands = mutants.test_commands("ACME407", tmp_path)
    assert commands == ["tests/test_rule_branches.py::test_it", "tests/test_rules.py -k ACME407",
                        "tests/test_aaa.py::test_it"]  # fmt: skip
    (folder / "test_aaa.py").write_text(
        'import pytest\n\npytestmark = pytest.mark.slow\n\n\ndef test_it():\n    assert "ACME407"\n'
    )
    assert mutants.test_commands("ACME407", tmp_path) == commands[:2]
    assert mutants.test_commands("ACME407", tmp_path, slow=True) == commands
    assert mutants.test_commands("ACME407", tmp_path, slow=True, quick=True) == commands[:2]
    assert mutants.test_commands("ACME999", tmp_path) == ["tests/test_rules.py -k ACME999"]


def test_a_survivor_is_named_and_what_was_not_tried_is_not_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried = mutants.Tried(
        "ACME407", [("rules/a.py:3 Not", True), ("rules/a.py:9 Is", False)], left=4
    )
    assert mutants.report([tried, mutants.Tried("ACME402", why="no time was left")]) == 1
    said = capsys.readouterr().out
    assert "survived  rules/a.py:9 Is" in said and "1 of 2 mutants killed (50%" in said
    assert "ACME407: 4 mutants" in said and "ACME402: no time was left" in said
    assert mutants.report([mutants.Tried("ACME407", [("rules/a.py:3 Not", True)])]) == 0


def test_what_the_forks_tell_is_added_to_its_rule() -> None:
    rule = mutants.Tried("ACME407", why="no time was left")
    told = {"code": "ACME407", "place": "rules/a.py:3 Not", "change": "a -> not a", "killed": False}
    mutants.note(told, {"ACME407": rule})
    mutants.note({"code": "ACME407", "left": 2}, {"ACME407": rule})
    assert rule == mutants.Tried("ACME407", [("rules/a.py:3 Not: a -> not a", False)], left=2)


def test_a_changed_module_is_not_taken_for_the_compiled_one(tmp_path: Path) -> None:
    """Python compares seconds and length, and a mutant has the length of the one before."""
    path = tmp_path / "module.py"
    times = []
    for text in ("a < 1", "a > 1", "a < 2"):
        forked_tests.write(path, text)
        times.append(int(path.stat().st_mtime))
    assert path.read_text() == text and len(set(times)) == 3


def test_a_mutant_is_told_by_the_lines_that_it_changes() -> None:
    mutant = forked_tests.Mutant(2, "Not", "a = 1\nif not a:\n    a = 2\n")
    assert mutant.told("a = 1\nif a:\n    a = 2\n") == "if a: -> if not a:"


def test_examples_and_imports_for_annotations_are_left_alone() -> None:
    """To change an example is to change a test."""
    text = (
        "if TYPE_CHECKING:\n    import a\nclass Rule:\n    depth = 1\n"
        "    examples = (\n        2,\n    )\n"
    )
    assert forked_tests._left_alone(text) == {1, 2, 5, 6, 7}
