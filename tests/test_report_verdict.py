"""What a report says first, and of what its numbers are: the state after the fixes were written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lora_doctor import reports
from lora_doctor.cli.fix import _show_diff
from lora_doctor.cli.next_command import next_command
from lora_doctor.engine.case import Case
from lora_doctor.engine.diagnose import _notes
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.reports._checks import check_value
from lora_doctor.reports._costs import costs
from lora_doctor.reports._verdict import is_mended, next_words, verdict_text
from lora_doctor.reports._words import tally
from lora_doctor.results.diagnosis import Diagnosis, Gathered
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.finding import Measurement
from lora_doctor.results.memory_plan import MemoryPart, MemoryPlan, MemoryVariant
from lora_doctor.results.note import Note
from lora_doctor.results.verification import CHECKS, Check, Failure, Verification
from lora_doctor.text import GIB
from tests import diagnoses

FILES = ("lora-doctor.recipe.yaml", "lora-doctor.prescription.json", "lora-doctor.html")


def written(**changes: Any) -> Diagnosis:
    """The repaired run of Phi-3, with the fix in its file."""
    return replace(diagnoses.phi3(), written_to=FILES, **changes)


def words(page: str) -> str:
    body = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_a_repaired_run_is_green_and_says_what_was_mended() -> None:
    found = written()
    verdict = verdict_text(found)
    assert (verdict.tone, verdict.headline) == ("good", "Fixed: the recipe trains")
    for part in (FILES[0], "LD202", "12 of 12 checks passed", "Found before: 1 error."):
        assert part in verdict.explanation
    assert is_mended(found.findings[0], found)
    page = words(reports.render(found, "html"))
    assert "Findings before the fixes" in page and "1 fixed" in page
    assert "1 error" not in page.split("Findings before the fixes")[0].replace(
        "before: 1 error", ""
    )
    terminal = reports.render(found, "full")
    assert "Fixed: the recipe trains" in terminal and "would fail" not in terminal


def test_before_anything_is_written_the_recipe_is_what_it_is() -> None:
    found = diagnoses.phi3()
    assert verdict_text(found).tone == "error"
    assert not is_mended(found.findings[0], found)


def test_what_remains_after_writing_is_the_headline() -> None:
    left = diagnoses.vision_language().findings[1]
    verdict = verdict_text(written(remaining=(left,)))
    assert (verdict.tone, verdict.headline) == ("warning", "Fixed in part: 1 warning remains")
    note = replace(left, severity="info")
    assert verdict_text(written(remaining=(note,))).tone == "good", "a note is nothing to mend"
    same = written(remaining=diagnoses.phi3().findings)
    assert not is_mended(same.findings[0], same)


def test_fixes_that_were_written_and_not_proven_are_not_green() -> None:
    open_run = Verification.undetermined("the time limit of 60 s was reached", depth="tiny")
    verdict = verdict_text(written(after=open_run))
    assert verdict.tone == "open" and "time limit of 60 s" in verdict.explanation
    failed = verdict_text(written(after=diagnoses.verification({"loss-falls": 0.2})))
    assert failed.tone == "error" and "loss-falls" in failed.explanation
    half = verdict_text(written(undetermined="a rule crashed"))
    assert half.tone == "open" and "a rule crashed" in half.explanation


def plan(total: int) -> MemoryPlan:
    """A plan for a recipe that takes so many GiB, known exactly."""
    part = MemoryPart("weights, not quantized", total * GIB, "bfloat16 × 2", "counted")
    return diagnoses.memory_plan(recipe=MemoryVariant("recipe", {}, (part,)), alternatives=())


@pytest.mark.parametrize(
    ("problems", "explains", "failing", "verdict"),
    [
        (("unmatched",), ("attaches",), {"attaches": 5}, "healthy"),
        (("unmatched",), (), {"attaches": 5}, "undetermined"),
        (("unmatched", "stray"), ("attaches",), {"attaches": 5}, "undetermined"),
        (("unmatched",), ("attaches", "loss-falls"), {"attaches": 5, "loss-falls": 1.0},
         "undetermined"),
    ],
)  # fmt: skip
def test_names_for_several_architectures_leave_a_run_healthy(
    problems: tuple[Any, ...], explains: tuple[str, ...], failing: dict[str, Any], verdict: str
) -> None:
    """Names that match nothing, and that nobody misses, were told as a contract that nothing
    explains, beside the note that explains it."""
    run = diagnoses.verification(failing)
    checks = (
        replace(check, problems=problems) if check.name == "attaches" else check
        for check in run.checks
    )
    note = replace(diagnoses.phi3().findings[0], severity="info", explains=explains)
    found = replace(
        diagnoses.healthy(), before=replace(run, checks=tuple(checks)), findings=(note,)
    )
    assert found.verdict == verdict


def test_healthy_beside_fits_no_card_is_said_in_one_breath() -> None:
    large = replace(diagnoses.healthy(), memory_plan=plan(140))
    verdict = verdict_text(large)
    assert verdict.tone == "warning" and large.verdict == "healthy"
    assert verdict.headline == "Trains, but it fits no GPU up to 80 GB: at least 140.0 GiB"
    assert "it fits no GPU up to 80 GB" in reports.render(large, "full")
    assert verdict_text(replace(large, memory_plan=plan(20))).tone == "good"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("builds", 136_512, "136,512 parameters"),
        ("attaches", 1, "1 adapter"),
        ("starts-at-base", 0.0, "the same loss"),
        ("starts-at-base", 2e-6, "relative difference 2e-06"),
        ("loss-finite", 6.2963, "loss 6.296"),
        ("gradients", "28 of 28", "28 of 28"),  # stored before a check said of how many
        ("gradients", "3 not finite", "3 not finite"),
        ("steps", 3, "3 rounds"),
        ("loss-falls", -0.4881, "the loss fell by 0.4881"),
        ("loss-falls", 0.25, "the loss rose by 0.25"),
        ("loss-falls", 0.0, "the loss did not change"),
        ("save-reload", 0.0, "the same logits"),
        ("merge", 1.7e-6, "relative difference 1.7e-06"),
        ("merge", float("nan"), "NaN"),
        ("builds", "AttributeError", "AttributeError"),
        ("forward", True, "passed"),
    ],
)
def test_each_number_says_what_it_is(name: str, value: Any, text: str) -> None:
    assert check_value(Check(name, "passed", value)) == text


def test_counts_say_of_how_many_and_of_what() -> None:
    run = diagnoses.vision_language().after
    assert run is not None
    forward = Check("forward", "passed", 2, "no exception", "batches: as anything may be called")
    assert check_value(forward, run) == "2 kinds of batch: text, image+text"
    moved = Check("frozen-stay", "failed", 2, "none moves", "lm_head.weight", total=21)
    assert check_value(moved) == "2 of 21 frozen weights moved"
    learn = Check("gradients", "failed", "3 of 4", "every one", total=4)
    assert check_value(learn) == "3 of 4 adapter parameters"


@pytest.mark.parametrize("value", ["<b>", 10**40, -1, 2.5, float("inf"), [1, {"a": 2}], None])
def test_values_of_another_kind_are_shown_as_they_are(value: Any) -> None:
    """A stored result may hold anything: it is shown and nothing raises."""
    for name in CHECKS:
        assert isinstance(check_value(Check(name, "failed", value, "at most 1")), str)


def test_times_add_up_to_the_total() -> None:
    found = replace(
        diagnoses.phi3(), seconds=3.0,
        gathered=(Gathered("structure", "meta device", 0.5), Gathered("tiny", "small model", 1.0),
                  Gathered("static", "files", 0.0, "an architecture has no files")),
    )  # fmt: skip
    table = costs(found, 200)
    counted = {row.what: row.time for row in table.rows if not row.part_of}
    assert counted == {
        "model at full size, without weights": "0.50 s",
        "tiny model, built and trained": "1.0 s",
        "the rest": "1.5 s",
    }
    assert table.total == "3.0 s"
    assert [row.time for row in table.rows if row.part_of] == ["0.91 s"]
    assert table.missing == (("files of the model", "an architecture has no files"),)


def test_the_next_command_comes_with_what_it_does() -> None:
    assert next_words(diagnoses.phi3()) == "applies the fixes and proves them"
    assert next_words(replace(diagnoses.phi3(), next_command="")) == ""
    assert next_words(replace(diagnoses.phi3(), next_command="<b> <i>")) == ""


# --- the terminal ---


def refused() -> Diagnosis:
    """PEFT raises, and a rule quotes it."""
    message = "Target modules {'nothing_here'} not found in the base model."
    raised = ErrorReport("ValueError", message, "peft/tuners/tuners_utils.py:1073")
    check = Check("attaches", "failed", "ValueError", "no exception",
                  f"ValueError: {message}", raised=raised)  # fmt: skip
    run = diagnoses.verification(
        checks=(check,), outcome="failed", batches=(), steps=0,
        failure=Failure("attaches", "ValueError", message, "", raised.where, "Traceback\n"),
    )  # fmt: skip
    found = replace(
        diagnoses.phi3().findings[0],
        evidence=(Measurement("get_peft_model", f"ValueError: {message}", "installed PEFT"),),
    )
    return replace(diagnoses.phi3(), findings=(found,), before=run, after=None)


@pytest.mark.parametrize("width", [60, 100])
def test_the_error_of_peft_is_told_once(width: int) -> None:
    text = reports.render(refused(), "full", width=width)
    assert " ".join(text.split()).count("not found in the base model") == 1
    assert "attaches failed: ValueError, as above (peft/tuners/tuners_utils.py:1073)" in (
        " ".join(text.split())
    )
    unquoted = replace(refused(), findings=())
    text = " ".join(reports.render(unquoted, "full", width=width, verbose=True).split())
    assert "not found in the base model" in text, "where nothing quotes it, the run does"


@pytest.mark.parametrize("build", [diagnoses.phi3, diagnoses.vision_language, refused])
def test_sixty_columns_are_enough(build: Callable[[], Diagnosis]) -> None:
    for verbose in (False, True):
        for line in reports.render(build(), "full", width=60, verbose=verbose).splitlines():
            assert line.startswith("Next: ") or len(line) <= 60, line


def test_a_healthy_script_was_read_and_its_dry_run_comes_next() -> None:
    found = diagnoses.healthy()
    model = replace(found.model, script="train.py")
    options = {"model": "train.py", "script_arguments": ("--epochs", "1")}
    following = next_command(replace(found, model=model), "check", options, None)
    assert following == "lora-doctor dry-run -- python train.py --epochs 1"
    text = reports.render(replace(found, model=model, next_command=following), "full")
    assert text.startswith("✓ train.py (arch:llama): healthy: ")
    assert "read, not run" in text and text.endswith(f"Next: {following}\n")
    assert next_command(found, "check", {"model": "arch:llama"}, None) == ""


@pytest.mark.parametrize(
    ("severity", "command"), [("error", "check"), ("warning", "check"), ("info", "verify")]
)
def test_what_is_left_after_the_fixes_is_checked_again(severity: Any, command: str) -> None:
    """``verify`` asks the training contract only, and would call the rest healthy."""
    found = diagnoses.phi3()
    left = (replace(found.findings[0], severity=severity),)
    written = SimpleNamespace(recipe_path="train.py", prescription_path="x.json")
    options = {"model": "train.py", "trust_remote_code": False}
    following = next_command(replace(found, remaining=left), "fix", options, written)
    assert following == f"lora-doctor {command} train.py"


@pytest.mark.parametrize("asked", [True, False])
def test_the_next_command_asks_for_the_memory_plan_again(asked: bool) -> None:
    """Else its result lacks what this one was asked for."""
    options = {
        "model": "arch:llama", "recipe_file": None, "memory": asked, "trust_remote_code": False,
    }  # fmt: skip
    following = next_command(diagnoses.phi3(), "check", options, None)
    assert ("--memory" in following.split()) == asked, following


def test_findings_are_counted_in_the_words_that_stand_before_them() -> None:
    [found] = diagnoses.phi3().findings[:1]
    two = [replace(found, severity="info")] * 2
    assert tally([found, *two]) == "1 error, 2 info"
    assert tally(two[:1]) == "1 info"


def test_what_both_runs_could_not_run_is_told_once() -> None:
    """Meta and tiny build the same class, and lack the same attention."""
    lacks = Note("not-proven", "attn_implementation flash_attention_2 was not run")
    found = diagnoses.healthy()
    assert found.before is not None and found.structure is not None
    structure = replace(found.structure, notes=(lacks,))
    store = SimpleNamespace(known=lambda name: structure)
    case = SimpleNamespace(store=store, asked=SimpleNamespace(written=None))
    assert _notes(cast(Case, case), replace(found.before, notes=(lacks,))) == (lacks,)


def test_an_empty_diff_says_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    following = "lora-doctor fix train.py --unsafe-fixes --apply"
    found = replace(diagnoses.phi3(), recipe_diff="", next_command=following)
    _show_diff(found, 1)
    shown = capsys.readouterr()
    assert not shown.out and shown.err.strip().endswith(f"there is no diff; next: {following}")
    _show_diff(replace(found, recipe_diff="-r: 8\n+r: 16\n"), 1)
    assert capsys.readouterr().err == ""


def test_healthy_is_one_line_of_sixty_columns() -> None:
    found = diagnoses.healthy()
    given = replace(found, recipe=Recipe(found.recipe.values, {}))
    text = reports.render(given, "full", width=60)
    assert text.count("\n") == 1 and len(text) <= 61
    assert text.startswith("✓ arch:llama: healthy: 12 of 12 checks (tiny, cpu, ")
    assert "of the training contract" in reports.render(given, "full", width=100)
