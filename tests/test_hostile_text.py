"""What strangers wrote (file names, configs, recipes, exceptions) moves no cursor, hides nothing
and turns no writing around, on standard output and standard error, in every format."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_doctor.text import excerpt, visible, visible_lines
from tests import diagnoses
from tests.cli import Result, lora_doctor

#: ESC, the one-byte CSI of C1, bell, carriage return, bidi override and isolate, zero width, line
#: separator, tag character.
EVIL = "\x1b[31m\x9b2J\x07\r\u202e\u2066\u200b\u2028\U000e0041"
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def seen(text: str) -> bool:
    """Whether every character of an output can be seen."""
    return not [c for c in text if unicodedata.category(c) in _UNSEEN and c not in "\n\t"]


def check(result: Result) -> Result:
    assert seen(result.out), ascii(result.out)
    assert seen(result.err), ascii(result.err)
    assert "Traceback" not in result.err and "internal error" not in result.err, result.err
    return result


@given(st.text(max_size=400))
@example("x" * 301)
@example("x" * 300)
def test_an_excerpt_is_one_line_that_says_where_it_was_cut(text: str) -> None:
    words = " ".join(text.split())
    cut = excerpt(ValueError(text))
    assert cut == words if len(words) <= 300 else cut == f"{words[:297]}..."


@given(st.text())
@example("\r")
@example("a\r\r\n\r")
def test_what_is_made_visible_can_be_seen_and_stays_so(text: str) -> None:
    shown = visible_lines(text)
    assert seen(shown.replace("\r\n", "\n"))
    assert visible_lines(shown) == shown
    assert seen(visible(text, None))
    if seen(text) and "\t" not in text and "\n" not in text:
        assert unicodedata.normalize("NFC", text)[:1] == unicodedata.normalize("NFC", shown)[:1]


@given(st.text(alphabet="ab\t\n é✓"))
def test_a_harmless_text_is_left_alone(text: str) -> None:
    assert visible_lines(text) == text
    assert visible_lines(text.replace("\n", "\r\n")) == text.replace("\n", "\r\n")


@pytest.mark.parametrize("color", [True, False])
def test_the_terminal_report_has_a_last_gate(color: bool) -> None:
    """Colours are the only escapes, wherever the hostile text stands."""
    import re

    from lora_doctor.reports import full

    for verbose in (True, False):
        text = full.render(diagnoses.hostile(EVIL), color=color, verbose=verbose, width=100)
        assert seen(re.sub("\x1b\\[[0-9;]*m", "", text))


@pytest.mark.parametrize("output_format", ["full", "concise", "json", "html"])
def test_every_format_shows_what_is_hidden(output_format: str) -> None:
    """Also in a file, which somebody prints on a terminal later."""
    from lora_doctor.reports import render

    text = render(diagnoses.hostile(EVIL), output_format, verbose=True)
    assert seen(text) and visible_lines(text) == text


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose folder and config are hostile."""
    folder = tmp_path / f"model{EVIL}"
    folder.mkdir()
    config = {"model_type": "llama", "architectures": [f"Llama{EVIL}"], "vocab_size": f"x{EVIL}"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / f"modeling{EVIL}.py").write_text("x = (\n")
    return folder


def test_model_and_options_on_both_streams(model: Path, tmp_path: Path) -> None:
    for output_format in ("full", "concise"):
        check(
            lora_doctor("check", model, "--depth", "static", "--output-format", output_format, "-v")
        )
    missing = check(lora_doctor("check", tmp_path / f"none{EVIL}", "--depth", "static"))
    assert missing.code == 2 and "\\x1b[31m" in missing.one_line_error
    for option in ("--dtype", "--select", "--output-format", f"--{EVIL}", "--r", "--rules"):
        assert check(lora_doctor("check", model, "--depth", "static", option, f"v{EVIL}")).code == 2
    assert check(lora_doctor(f"command{EVIL}")).code == 2
    assert check(lora_doctor("explain", f"RuntimeError: {EVIL} mat1 and mat2")).code in (0, 2)


def test_json_keeps_the_data_exactly(tmp_path: Path) -> None:
    model = tmp_path / f"model{EVIL}"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    result = check(lora_doctor("check", model, "--depth", "static", "--output-format", "json"))
    assert json.loads(result.out)["model"]["name"].endswith(EVIL)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.yaml", f'"{EVIL[:5]}": 1\n'),
        ("r.yaml", "r: 1\n\u2066: : :\n"),
        ("r.yaml", 'target_modules: "\\e[31m\\x9b\u202e"\n"\\e[2J": 1\n'),
        ("r.json", json.dumps({f"key{EVIL}": 1})),
        ("r.json", '{"r": \x9b\u202e}'),
        (f"r{EVIL}.yaml", "r: ["),
    ],
)
def test_errors_in_a_recipe(tmp_path: Path, name: str, text: str) -> None:
    recipe = tmp_path / name
    recipe.write_text(text, "utf-8")
    result = check(
        lora_doctor("check", "arch:llama", "--depth", "static", "--recipe", recipe, cwd=tmp_path)
    )
    assert result.code == 2 and result.one_line_error


@pytest.mark.parametrize(
    ("name", "text"), [("r.yaml", "r: \u202e[\n"), ("r.json", json.dumps({"r": EVIL}))]
)
def test_a_text_in_the_place_of_a_number(tmp_path: Path, name: str, text: str) -> None:
    """It is a finding (LD223), which shows the text without being changed by it."""
    (tmp_path / name).write_text(text, "utf-8")
    words = ("check", "arch:llama", "--depth", "static", "--recipe", name)
    result = check(lora_doctor(*words, cwd=tmp_path))
    assert result.code == 1 and "LD223" in result.out


def test_the_diff_shows_what_is_hidden_in_the_recipe(tmp_path: Path) -> None:
    """C1 controls and bidi overrides are text to YAML."""
    from dataclasses import replace

    from lora_doctor.prescription.write_fix import Plan

    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "# \u202e\u2066 comment\r\ntarget_modules: [q_proj]\r\nr: 16  # a\ttab\r\n", newline=""
    )
    plan = Plan.make(str(recipe), str(tmp_path), write=False)
    diff = plan.with_diff(replace(diagnoses.phi3())).recipe_diff
    assert "\u202e" in diff, "the data are exact"
    shown = visible_lines(diff)
    assert seen(shown.replace("\r\n", "\n")) and "\\u202e\\u2066 comment" in shown
    assert " r: 16  # a\ttab\r\n" in shown, "what is harmless still applies as a patch"


def test_an_exception_of_a_factory(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(
        f"def factory():\n    raise RuntimeError({EVIL!r} + 'stop')\n", "utf-8"
    )
    result = check(lora_doctor("check", "evil:factory", "--depth", "meta", cwd=tmp_path))
    assert result.code == 2 and "\\x1b[31m" in result.out + result.err


def test_rules_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "from lora_doctor.rule_api import Rule\n"
        "class Evil(Rule):\n"
        f"    code, name, summary, depth = 'ZZ001', 'evil', {EVIL!r}, 'static'\n"
        "    def check(self, case):\n"
        f"        raise ValueError({EVIL!r})\n"
        "        yield\n",
        "utf-8",
    )
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    check(lora_doctor("rules", "--rules", tmp_path))
    result = check(lora_doctor("check", tmp_path, "--depth", "static", "--rules", tmp_path, "-v"))
    assert result.code == 2 and "\\u202e" in result.out
    (tmp_path / f"broken{EVIL}.py").write_text(f"raise ValueError({EVIL!r})", "utf-8")
    assert check(lora_doctor("rules", "--rules", tmp_path)).code == 2


@pytest.mark.skipif(os.name != "posix", reason="file names of bytes")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"m\xff\x9b")
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for output_format in ("full", "concise", "json", "html"):
        result = check(
            lora_doctor("check", folder, "--depth", "static", "--output-format", output_format)
        )
        assert result.code == 0
    output = folder / "report.json"
    done = lora_doctor("check", folder, "--depth", "static", "-o", output)
    assert done.code == 0 and output.exists()
