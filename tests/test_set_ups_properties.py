"""Edits of set-ups, whatever they look like: what is not touched stays byte for byte."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import ENTRY, REMOVE, Edit
from lora_doctor.recipe.files.read_write import read_recipe, write_edits
from lora_doctor.recipe.files.shell_syntax import commands
from tests.set_up_files import FOLDER, TWINS

quick = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip

SET_UPS = sorted({(FOLDER / twin.name) for twin in TWINS})
#: Edits that every framework has a place for.
EDITS = st.sampled_from(
    [
        Edit("r", 4),
        Edit("lora_alpha", 64),
        Edit("lora_dropout", 0.1),
        Edit("target_modules", "all-linear"),
        Edit("target_modules", ["o_proj", "down_proj"]),
        Edit("modules_to_save", ["lm_head", "embed_tokens"]),
        Edit("learning_rate", 0.003),
        Edit("per_device_train_batch_size", 3),
        Edit("r", REMOVE),
        Edit(f"{ENTRY}seed", 7),
        Edit(f"{ENTRY}output_dir", "a b/ü"),
    ]
)
COMMENTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x85\u2028\u2029"),
    max_size=12,
)


@st.composite
def decorated(draw: st.DrawFn) -> tuple[str, bytes]:
    """One of the set-ups with comments, blank lines and line ends of another kind."""
    path = draw(st.sampled_from(SET_UPS))
    text = path.read_bytes().decode("utf-8")
    if path.suffix != ".json" and not text.startswith("\ufeff"):
        lines = text.split("\n")
        place = draw(st.integers(0, len(lines) - 1))
        before = lines[place - 1].rstrip("\r") if place else ""
        if not before.endswith(("\\", ",")) and not lines[place].startswith(
            (" ", "- ", "#!", "---")
        ):
            lines.insert(place, "# " + draw(COMMENTS) + ("\r" if "\r\n" in text else ""))
        text = "\n".join(lines)
    if draw(st.booleans()):
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    return path.suffix, text.encode("utf-8")


@quick
@given(decorated(), EDITS)
def test_an_edit_changes_its_entry_and_nothing_else(file: tuple[str, bytes], edit: Edit) -> None:
    """Other lines stay; the value reads back; a second edit changes nothing."""
    suffix, data = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"set_up{suffix}"
        path.write_bytes(data)
        for name in FOLDER.glob("*/*_named.yaml"):
            (Path(folder) / name.name).write_bytes(name.read_bytes())
        before = read_recipe(path)
        try:
            new = write_edits(path, [edit])
        except InputError as error:
            assert "edited in place" in str(error) or "use the prescription" in str(error)
            return
        text = data.decode("utf-8-sig")
        path.write_bytes(new.encode())
        after = read_recipe(path)
        _reads_as(before, after, edit)
        assert write_edits(path, [edit]) == new, "twice is once"
        kept = {line for line in re.split(r"\r?\n", text) if line.lstrip().startswith("#")}
        assert kept <= set(re.split(r"\r?\n", new)), "comments stay"
        if "\r\n" in text:
            assert "\n" not in new.replace("\r\n", ""), "line ends stay"
        assert len(_changed(text, new)) <= 8, "only the lines of the entry, a list of seven"


def _reads_as(before: Any, after: Any, edit: Edit) -> None:
    assert before.set_up is not None and after.set_up is not None
    if edit.key.startswith(ENTRY):
        name = edit.key.removeprefix(ENTRY)
        found = after.set_up.entries.get(name)
        assert found is not None and str(found) == str(edit.value)
        return
    others = [key for key in before.values if key != edit.key]
    follow = {"lora_alpha"} if edit.key == "r" else set()  # twice the rank
    for key in others:
        assert key in follow or after.values.get(key) == before.values[key]
    if edit.value is not REMOVE:
        assert after.values[edit.key] == edit.value


def _changed(old: str, new: str) -> list[str]:
    left, right = re.split(r"\r?\n", old), re.split(r"\r?\n", new)
    return [line for line in left if line not in right]


WORDS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x85\u2028\u2029"),
    min_size=1,
    max_size=10,
)


@quick
@given(st.lists(WORDS, min_size=1, max_size=6), st.sampled_from([" ", " \\\n  ", " \\\r\n\t"]))
def test_the_words_of_a_command_are_those_that_the_shell_sees(
    words: list[str], separator: str
) -> None:
    """Against ``shlex``, which quotes them as Python's own shell commands do."""
    text = separator.join(["run", *map(shlex.quote, words)]) + "\n"
    (command,) = commands(text, {})
    assert [word.text for word in command.words] == ["run", *words]
    for word in command.words[1:]:
        assert shlex.split(text[word.start : word.end]) == [word.text]


@quick
@given(st.binary(max_size=120), st.sampled_from([".sh", ".yaml", ".json", ""]))
def test_no_bytes_are_a_traceback(data: bytes, suffix: str) -> None:
    """Whatever a file holds, the answer is a recipe or one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(data)
        try:
            json.dumps(read_recipe(path).to_json())
        except InputError as error:
            assert "\n" not in str(error)


PIECES = st.lists(
    st.sampled_from(
        ["swift sft ", "--model m ", "--lora_rank ", "8 ", "$X ", "${Y:-3} ", "$(", ")", "`", '"',
         "'", "\\\n", "\\", "\n", "#", ";", "&&", "<<EOF\n", "EOF\n", "X=1 ", "export Z=2\n", "{",
         "}", "--tuner_type lora ", ">", "2>&1 ", "|"]
    ),
    max_size=25,
)  # fmt: skip


@quick
@given(PIECES)
def test_broken_shell_is_read_or_refused(pieces: list[str]) -> None:
    """Half a quote, half a substitution: an answer, never an endless loop."""
    text = "".join(pieces)
    assume(text.strip())
    for command in commands(text, {"X": "4"}):
        for word in command.words:
            assert 0 <= word.start <= word.end <= len(text) + 1
