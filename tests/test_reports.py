"""The terminal, concise and JSON reports: what people and programs read."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import subprocess
import sys
from importlib import resources
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_doctor import reports
from lora_doctor.recipe.edit import REMOVE, Edit, Patch
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.reports._recipe_lines import DiffLine, fix_diff
from lora_doctor.reports._text import plain, shown, visible
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.finding import Finding, Location, Measurement, Proof
from lora_doctor.results.fix import Fix
from lora_doctor.results.formats import find_formats
from tests import diagnoses

SCHEMA = json.loads(
    resources.files("lora_doctor").joinpath("schema/diagnosis-2.json").read_text(encoding="utf-8")
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
HOSTILE = [
    "<script>alert(1)</script>",
    "[bold]not markup[/bold] [/] [link=http://evil]",
    "\x1b[2J\x1b[31mred\x1b]8;;http://evil\x07",
    "line\r\nnext\u2028sep\x00nul\x7f",
    "\u202egnp.exe\u2066\u200bzero",
    "\ud800 lone surrogate",
    "a" * 10_000,
    "e" + "\u0301" * 200,
    "{{7*7}} {% raw %} %s {0}",
    "\N{FACE WITH TEARS OF JOY} 模型 نموذج",
]
#: What must never reach a terminal from data: C0 but line feed, DEL, C1, bidi and zero width.
UNSAFE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
texts = st.one_of(st.text(max_size=60), st.sampled_from(HOSTILE))


def strict_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- the formats as a whole ---


def test_formats_are_found_by_their_files() -> None:
    """What is in the folder, the one for people first; no list names them."""
    folder = resources.files("lora_doctor.reports")
    files = {item.name for item in folder.iterdir() if item.name.endswith(".py")}
    modules = {name.removesuffix(".py") for name in files if not name.startswith("_")}
    names = {module.replace("_", "-") for module in modules}
    assert names >= {"full", "concise", "html", "json"}
    assert list(find_formats()) == ["full", *sorted(names - {"full"})]


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 'pdf': expected one of full"):
        reports.render(diagnoses.healthy(), "pdf")


def test_finding_the_formats_imports_nothing_heavy() -> None:
    """`lora-doctor --help` lists the formats and must stay instant."""
    code = (
        "import sys, lora_doctor.reports as r; r.find_formats(); "
        "print([m for m in ('rich', 'jinja2', 'torch', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", diagnoses.ALL)
@pytest.mark.parametrize("format", find_formats())
def test_rendering_is_deterministic_and_ends_in_a_newline(name: str, format: str) -> None:
    first = reports.render(diagnoses.ALL[name](), format)
    assert first == reports.render(diagnoses.ALL[name](), format)
    assert first == "" or first.endswith("\n")


@pytest.mark.parametrize("format", find_formats())
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_the_report_fits_the_encoding(format: str, encoding: str) -> None:
    """A Windows console or a C locale must not end the run with UnicodeEncodeError."""
    for build in (diagnoses.phi3, lambda: diagnoses.hostile(HOSTILE[-1])):
        reports.render(build(), format, encoding=encoding).encode(encoding)


# --- json and its schema ---


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", diagnoses.ALL)
def test_json_is_strict_and_valid_against_the_schema(name: str) -> None:
    data = strict_json(reports.render(diagnoses.ALL[name](), "json"))
    VALIDATOR.validate(data)
    assert {"schema_version", "model", "recipe", "environment", "depth", "verdict", "findings",
            "skipped", "verification", "timings"} <= data.keys()  # fmt: skip


def test_every_object_of_ours_is_closed_and_described() -> None:
    """A key that the schema does not know must fail a test, not surprise a reader."""

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object" and "properties" in node and path != "/environment":
                assert node.get("additionalProperties") is False, path
            for key, item in node.get("properties", {}).items():
                known = "description" in item or "$ref" in item or "enum" in item or "const" in item
                assert known, f"{path}/{key}"
                walk(item, f"{path}/{key}")
            for key in ("items", "additionalProperties"):
                walk(node.get(key), path)
            for item in (*node.get("anyOf", ()), *node.get("oneOf", ())):
                walk(item, path)

    walk(SCHEMA, "")
    for name, node in SCHEMA["$defs"].items():
        walk(node, f"$defs/{name}")


def test_numbers_that_json_cannot_write_become_texts() -> None:
    values = [math.nan, math.inf, -math.inf, 1.5, 10**30, True, None]
    assert plain(values) == ["NaN", "Infinity", "-Infinity", 1.5, 10**30, True, None]
    data = strict_json(reports.render(diagnoses.vision_language(), "json"))
    assert data["verification"]["after"]["batches"][1]["losses"][2] == "NaN"


def test_plain_orders_sets_and_keeps_no_object() -> None:
    assert plain({"b", "a"}) == ["a", "b"]
    assert plain({3: object}) == {"3": "<class 'object'>"}
    assert plain("\ud800") == "?"


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(object)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(texts, inner, max_size=3),
        st.frozensets(texts, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip
fixes = st.one_of(
    st.builds(Fix, texts, st.just("manual")),
    st.builds(
        Fix, texts, st.sampled_from(["safe", "unsafe"]),
        st.lists(
            st.builds(Edit, texts, values | st.just(REMOVE)), min_size=1, max_size=3
        ).map(tuple),
    ),
    st.builds(Fix, texts, st.just("unsafe"),
              patch=st.builds(Patch, texts, st.dictionaries(texts, values, max_size=2))),
)  # fmt: skip
findings = st.builds(
    Finding,
    texts, texts, st.sampled_from(["error", "warning", "info"]), texts,
    st.builds(Location, st.sampled_from(["module", "recipe", "file", "environment"]), texts,
              st.none() | st.integers(1, 10**6)),
    st.lists(st.builds(Measurement, texts, values, texts), min_size=1, max_size=4).map(tuple),
    st.builds(Proof, st.sampled_from(["executed", "measured", "read", "inferred"]), texts),
    st.lists(fixes, max_size=3).map(tuple),
)  # fmt: skip
anything = st.builds(
    lambda found, recipe, text: dataclasses.replace(
        diagnoses.hostile(text), findings=tuple(found), recipe=Recipe(recipe)
    ),
    st.lists(findings, max_size=3),
    st.dictionaries(texts, values, max_size=4),
    texts,
)
patient = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@patient
@given(anything)
def test_json_of_anything_is_strict_valid_and_ascii(diagnosis: Diagnosis) -> None:
    text = reports.render(diagnosis, "json")
    assert text.isascii()
    VALIDATOR.validate(strict_json(text))


@patient
@given(anything, st.booleans(), st.integers(20, 160))
def test_terminal_text_of_anything_is_harmless(
    diagnosis: Diagnosis, verbose: bool, width: int
) -> None:
    """No text of a model repository moves the cursor, hides itself or turns the line around."""
    text = reports.render(diagnosis, "full", verbose=verbose, width=width)
    assert not UNSAFE.search(text)
    text.encode()


@patient
@given(anything)
def test_concise_is_one_line_per_finding(diagnosis: Diagnosis) -> None:
    text = reports.render(diagnosis, "concise")
    assert not UNSAFE.search(text)
    lines = text.split("\n")[:-1]
    is_open = diagnosis.verdict == "undetermined" or diagnosis.undetermined is not None
    assert len(lines) == len(diagnosis.findings) + is_open


# --- concise ---


def test_concise_line() -> None:
    text = reports.render(diagnoses.phi3(), "concise")
    assert text.startswith("target_modules: LD202 q_proj, k_proj, ")
    assert text.endswith("[error, safe fix, executed: name the fused projections]\n")


def test_concise_puts_the_worst_first() -> None:
    lines = reports.render(diagnoses.vision_language(), "concise").splitlines()
    assert [line.split(": ")[1][:5] for line in lines] == ["LD203", "LD404"]


def test_concise_is_silent_when_healthy_but_not_when_nothing_was_proven() -> None:
    assert reports.render(diagnoses.healthy(), "concise") == ""
    text = reports.render(diagnoses.undetermined(), "concise")
    assert text.startswith("salmonn.build:model: undetermined: No batch could be made")


# --- full ---


def test_a_healthy_recipe_that_the_user_gave_prints_one_line() -> None:
    diagnosis = diagnoses.healthy()
    given_by_user = Recipe(
        diagnosis.recipe.values, dict.fromkeys(diagnosis.recipe.values, "option")
    )
    text = reports.render(dataclasses.replace(diagnosis, recipe=given_by_user))
    assert text.count("\n") == 1
    assert "arch:llama: healthy: 12 of 12 checks" in text


def test_a_proposed_recipe_is_said_to_be_ours() -> None:
    lines = reports.render(diagnoses.healthy(), width=300).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(
        "proposed by lora-doctor: task_type=CAUSAL_LM, target_modules=[q_proj"
    )


def test_a_finding_is_told_with_evidence_proof_fix_and_the_next_command_last() -> None:
    text = reports.render(diagnoses.phi3(), width=100)
    for part in (
        "error LD202 target-modules-partly-unmatched",
        "entries that match nothing",
        "executed: PEFT attached 64 adapters",
        "safe: name the fused projections",
        "-   - q_proj",
        "+   - qkv_proj",
        "    - o_proj",
        "lora-doctor explain LD202",
        "64 of 224 named",
        "before 11 of 12 checks passed, after the fixes 12 of 12 checks passed",
        "executed at depth tiny: 12 of 12 checks passed",
        "4 rules passed, 2 skipped",
    ):
        assert part in text, part
    assert text.splitlines()[-1].startswith("Next: lora-doctor fix arch:phi3")


def test_a_command_is_never_broken() -> None:
    """It will be copied from the terminal."""
    last = reports.render(diagnoses.phi3(), width=60).splitlines()[-1]
    assert last.endswith("--apply") and len(last) > 100


def test_inferred_says_may_and_executed_does_not() -> None:
    text = reports.render(diagnoses.vision_language(), width=120)
    assert "may happen: inferred from files, nothing was run: LoraConfig's default" in text
    assert "measured: " in text
    assert "may happen" not in reports.render(diagnoses.phi3(), width=120)


def test_undetermined_says_that_nothing_was_proven_and_why() -> None:
    text = reports.render(diagnoses.undetermined(), width=200)
    assert "Undetermined: nothing was proven" in text
    assert "forward wants 'spectrogram'" in text
    assert "healthy" not in text.lower()


@pytest.mark.parametrize("name", ["full", "html", "markdown", "concise", "gitlab", "sarif"])
def test_a_depth_that_trains_nothing_claims_neither_proof_nor_failure(name: str) -> None:
    """The exit code is 0, so no format says that something stayed undetermined; the same words."""
    text = reports.render(diagnoses.static_only(), name, width=200)
    assert "othing found at depth static; training was not tried" in text
    assert "no proof that it trains: the training contract was not executed" in text
    assert "ndetermined:" not in text and "Healthy" not in text


def test_skipped_is_a_count_until_verbose() -> None:
    diagnosis = diagnoses.phi3()
    assert "needs static evidence" not in reports.render(diagnosis)
    assert "needs static evidence" in reports.render(diagnosis, verbose=True, width=120)


@pytest.mark.parametrize("name", sorted(diagnoses.ALL.keys() - {"big"}))
@pytest.mark.parametrize("verbose", [False, True])
def test_full_fits_eighty_columns(name: str, verbose: bool) -> None:
    for line in reports.render(diagnoses.ALL[name](), verbose=verbose).splitlines():
        copied = line.startswith(("Next: ", "✓ arch:llama: healthy"))
        assert copied or len(line) <= 80, line


def test_color_only_where_asked_and_never_under_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in reports.render(diagnoses.phi3(), color=True)
    assert "\x1b" not in reports.render(diagnoses.phi3(), color=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in reports.render(diagnoses.phi3(), color=True)


def test_colors_do_not_change_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = reports.render(diagnoses.phi3(), color=True)
    bare = "".join(
        f"{line.rstrip()}\n" for line in re.sub(r"\x1b\[[\d;]*m", "", colored).splitlines()
    )
    assert bare == reports.render(diagnoses.phi3())


def test_markup_of_strangers_stays_text() -> None:
    text = reports.render(diagnoses.hostile("[bold]x[/bold]"), width=120)
    assert "[bold]x[/bold]" in text


def test_long_names_are_cut_in_the_middle() -> None:
    text = reports.render(diagnoses.hostile("start" + "a" * 10_000 + "end"), width=80)
    assert "start" in text and "end" in text
    assert len(text) < 30_000  # 10,000 of them are the command, which is never cut


def test_the_ascii_fallback_keeps_the_meaning() -> None:
    text = reports.render(diagnoses.phi3(), encoding="ascii")
    assert "x 64 of 224 named" in text and "+ 128 of 128" in text


# --- words ---


@given(texts)
@settings(derandomize=True)
def test_visible_text_shows_everything(text: str) -> None:
    assert not UNSAFE.search(visible(text).replace("\n", ""))
    assert "\n" not in visible(text)


def test_visible_keeps_other_alphabets() -> None:
    assert visible("模型 نموذج é") == "模型 نموذج é"
    assert visible("a\u202eb") == "a\\u202eb"
    assert visible("a\nb\tc", lines=True) == "a\nb    c"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"), (True, "true"), (0, "0"), (123456, "123,456"), (0.1 + 0.2, "0.3"),
        (math.nan, "NaN"), ([], "[]"), (["a", 1], "a, 1"), ({"a": [1]}, "a: 1"), ("", "(empty)"),
        (list(range(100)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 … and 88 more"),
    ],
)  # fmt: skip
def test_shown_values(value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_key_is_shown_under_the_name_that_the_users_file_has() -> None:
    diagnosis = diagnoses.phi3()
    recipe = dataclasses.replace(diagnosis.recipe, names={"target_modules": "lora_target"})
    renamed = dataclasses.replace(diagnosis, recipe=recipe)
    full, concise = (reports.render(renamed, name, width=120) for name in ("full", "concise"))
    assert "at lora_target (target_modules)" in full and "  lora_target:\n" in full
    assert concise.startswith("lora_target (target_modules): LD202")
    assert "lora_target (target_modules)" in reports.render(renamed, "html")


def test_no_empty_table_and_both_runs_are_counted_after_a_fix() -> None:
    """What was not run before and passes after is not told as not run."""
    diagnosis = diagnoses.phi3()
    assert diagnosis.after is not None
    same = dataclasses.replace(diagnosis, before=diagnosis.after)
    text = reports.render(same, width=120)
    assert "after the fixes 12 of 12 checks passed" in text
    assert not [line for line in text.splitlines() if line.split()[:2] == ["check", "before"]]


def test_only_an_executed_fix_is_called_safe() -> None:
    """Also one that a rule, or another program, calls so."""
    diagnosis = diagnoses.phi3()
    fix = Fix("name the fused projections", "safe", diagnosis.findings[0].fixes[0].edits)
    finding = dataclasses.replace(diagnosis.findings[0], fixes=(fix,))
    told = dataclasses.replace(diagnosis, findings=(finding,), applied=(), after=None)
    for name in ("full", "concise", "html"):
        text = reports.render(told, name, width=120)
        assert "not executed" in text and "safe fix" not in text and "safe: name" not in text


def test_fix_diff_covers_setting_changing_and_removing() -> None:
    fix = Fix("x", "safe", (Edit("r", 8), Edit("task_type", REMOVE), Edit("bias", "none")))
    lines = fix_diff(fix, Recipe({"r": 16, "task_type": "CAUSAL_LM"}))
    assert lines == [
        DiffLine("-", "r: 16"), DiffLine("+", "r: 8"), DiffLine("-", "task_type: CAUSAL_LM"),
        DiffLine("+", "bias: 'none'"),
    ]  # fmt: skip


def test_full_can_be_printed_to_a_narrow_ascii_stream() -> None:
    """End to end as a C locale has it."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream.write(reports.render(diagnoses.vision_language(), encoding=stream.encoding, width=40))
    stream.flush()
