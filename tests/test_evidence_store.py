"""Evidence is gathered once, and follows a case to its next recipe as far as it can."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_doctor.engine.case import Case
from lora_doctor.engine.evidence_store import EvidenceStore, evidence, kinds
from lora_doctor.engine.other_rules import OtherRules
from lora_doctor.engine.settings import Settings
from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.model_source import parse_model


class Counting:
    """Something with evidence, that counts how often each piece is gathered."""

    def __init__(self) -> None:
        self.store = EvidenceStore("a model")
        self.calls: list[str] = []

    @evidence(of_recipe=False)
    def files(self) -> str:
        """The files."""
        self.calls.append("files")
        return "config.json"

    @evidence(of_recipe=True)
    def run(self) -> str:
        self.calls.append("run")
        raise EvidenceError("no torch here")


def test_a_piece_is_gathered_when_first_asked_for_and_once() -> None:
    held = Counting()
    assert Counting.files.known(held) is None and held.calls == []
    assert held.files == held.files == "config.json"
    assert held.calls == ["files"] and Counting.files.known(held) == "config.json"
    assert Counting.files.__doc__ == "The files."


def test_what_cannot_be_had_is_not_tried_again() -> None:
    """A rule that asks for it later gets the same reason, and no second child process."""
    held = Counting()
    for _ in range(2):
        with pytest.raises(EvidenceError, match="no torch here"):
            _ = held.run
    assert held.calls == ["run"]
    assert [(piece.name, piece.unavailable) for piece in held.store.gathered] == [
        ("run", "no torch here")
    ]


def test_forgotten_pieces_are_gathered_anew_values_and_refusals() -> None:
    held = Counting()
    with pytest.raises(EvidenceError):
        _ = held.run
    held.store.forget(kinds(Counting, of_recipe=True))
    with pytest.raises(EvidenceError):
        _ = held.run
    assert held.calls == ["run", "run"]


def test_what_no_recipe_changes_is_shared_and_nothing_else() -> None:
    first, second = Counting(), Counting()
    _ = first.files
    with pytest.raises(EvidenceError):
        _ = first.run
    first.store.share_with(second.store, kinds(Counting, of_recipe=False))
    assert second.files == "config.json" and second.calls == []
    with pytest.raises(EvidenceError):
        _ = second.run
    assert second.calls == ["run"]


def test_every_kind_of_evidence_about_a_case_says_whether_a_recipe_changes_it() -> None:
    """Else a fix would be judged by evidence of the recipe before it, or files be read twice."""
    assert set(kinds(Case, of_recipe=True)) == {
        "structure", "checkpoint_quantization", "loading", "memory_plan", "supervision", "tiny",
        "full", "script", "program", "launches", "set_up", "side_files",  # of a file
        "refused_arguments", "refused_trainer", "adapter_steps", "plain_weights", "long_row",
        "adapted_part", "misused_values", "processed_image", "first_batch",
    }  # fmt: skip
    assert set(kinds(Case, of_recipe=False)) == {
        "environment", "static", "remote_code", "optimizer", "adapter",
        "adapter_values", "adapter_loading", "dry_run", "chat_template",
    }  # fmt: skip


def test_a_case_of_another_recipe_keeps_the_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    case = Case(parse_model(tmp_path), as_recipe({}), Settings("static"), Worker())
    static = case.static
    again = case.again(as_recipe({"r": 4}), ())
    assert again.static is static and again.recipe.get("r") == 4
    assert not again.gathered, "it cost nothing"


def test_what_other_rules_said_is_of_one_rule_and_does_not_change_under_it() -> None:
    """The case that a rule holds is not written to when the next rule is asked."""
    case = Case(parse_model("arch:gpt2"), as_recipe({}), Settings("static"), Worker())
    seen = case.beside(OtherRules(frozenset({"attaches"}), lambda message: [f"LD999 {message}"]))
    assert seen.explained == {"attaches"} and case.explained == frozenset()
    assert seen.rules_with_symptom("boom") == ["LD999 boom"]
    assert seen.store is case.store
