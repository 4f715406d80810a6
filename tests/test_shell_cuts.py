"""Where a command of a shell file ends too early, held against what bash makes of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lora_doctor.recipe.files.shell_cut import cuts, rejoined
from lora_doctor.recipe.files.shell_syntax import commands

COMMAND = "train --a 1 \\\n  --b 'x y' \\\n  --c-d=3 \\\n  --e f g\necho end\n"
#: What is put in the place of what, and the line that is told.
BROKEN = {
    "no backslash": (" \\\n  --c-d", "\n  --c-d", 2),
    "space": (" \\\n  --c-d", " \\ \n  --c-d", 2),
    "tab and spaces": (" \\\n  --b", "\\\t  \n  --b", 1),
    "comment behind": (" \\\n  --b", " \\ # the rank\n  --b", 1),
    "comment between": ("  --c-d=3 \\\n", "  # --c-d=3 \\\n", 3),
    "comments between": ("  --b", "  # one\n  # two \\\n  --b", 2),
    "empty line": ("  --e", "\n  --e", 4),
    "carriage returns": ("\n", "\r\n", 1),
    "at two places": (" \\\n", "\n", 1),
}
HEALTHY = {
    "as it is": COMMAND,
    "to a file": COMMAND.replace("f g", "f g > log 2>&1 &\nwait"),
    "comment at the end": COMMAND.replace("f g", "f g \\\n\n# --h 4"),
    "an array": 'words=(\n  --a 1 # one\n  # --b 2\n  --c 3\n)\ntrain "${words[@]}"\n',
    "a here-document": "train --a <<END\n--b 2\nEND\n",
    "in quotes": "train --a '\n--b 2'\n",
    "two commands": "train --a 1\n\ntrain \\\n  --b 2\n",
    "a pattern": "case --a in\n  # one\n  --a) train --a 1 ;;\nesac\n",
    "a return in quotes": "train --a 'x \\\r\ny' --b 2\n",
    "substituted": 'train --a "$(echo \\\n  --b)"\n',
}


def _bash(text: str, folder: Path) -> tuple[list[str], set[str]]:
    """The arguments that ``train`` gets, and what bash takes for names of programs."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    script = folder / "run.sh"
    script.write_bytes(b"train() { printf '%s\\n' \"$@\"; }\n" + text.encode())
    ran = subprocess.run([bash, str(script)], capture_output=True, check=False, timeout=60,
                         cwd=folder)  # fmt: skip
    told = ran.stderr.decode()
    return ran.stdout.decode().split("\n"), set(re.findall(r": (--[\w-]+)\S*: command not", told))


@pytest.mark.parametrize("name", BROKEN)
def test_bash_ends_the_command_there(name: str, tmp_path: Path) -> None:
    """What bash does not pass is what is told; the options are read as they were meant."""
    old, new, line = BROKEN[name]
    text = COMMAND.replace(old, new)
    assert text != COMMAND
    passed, missed = _bash(text, tmp_path)
    found = cuts(text)
    assert found[0].line == line
    assert {cut.options[0] for cut in found} <= missed <= set(found[0].options)
    options = {"--a", "--b", "--c-d", "--e"} - ({"--c-d"} if name == "comment between" else set())
    assert {word.partition("=")[0] for word in passed if word.startswith("--")} == (
        options - set(found[0].options)
    )
    words = commands(rejoined(text), {})[0].words
    assert {(word.text or "").partition("=")[0] for word in words} >= options
    for word in words:  # each where it stands in the file
        assert (word.text or "").split()[0].strip("'") in text[word.start : word.end]


@pytest.mark.parametrize(
    ("command", "taken", "is_option"),
    [
        ("train --a x y", "y", False),
        ("train --a 'x y'", "'x y'", False),
        ("train --b=x # why\r\ntrain --a 1 --b=x", "--b=x", False),
        ("train --a 1 --b", "--b", True),
        ("train --a 1 --b 1e-4", "", False),  # read as the number
        ("train --b x > log", "", False),
        ("echo x", "", False),  # has no options
    ],
)
def test_the_last_word_of_a_line_takes_a_carriage_return_along(
    command: str, taken: str, is_option: bool, tmp_path: Path
) -> None:
    text = f"{command}\r\n"
    passed, _ = _bash(text, tmp_path)
    found = [cut for cut in cuts(text) if cut.returned]
    assert [(cut.options, cut.stray) for cut in found] == ([((taken,), is_option)] if taken else [])
    assert not taken or passed[-2] == taken.strip("'") + "\r"
    assert rejoined(text) == text


@pytest.mark.parametrize("name", HEALTHY)
def test_a_whole_command_is_left_alone(name: str, tmp_path: Path) -> None:
    _, missed = _bash(HEALTHY[name], tmp_path)
    assert not missed
    assert not cuts(HEALTHY[name]) and rejoined(HEALTHY[name]) == HEALTHY[name]


def test_hostile_scripts_end(tmp_path: Path) -> None:
    """A variable that doubles is not followed for ever, and cuts without end are not all told."""
    assert len(cuts("train --a 1\n" + "--b 2\n" * 2000)) == 100
    grown = commands("A=0123456789\n" + "A=$A$A\n" * 60 + "train $A\n", {})
    assert grown[-1].words[-1].text is None
