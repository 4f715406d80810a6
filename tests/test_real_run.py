"""``lora-doctor run``: the user's command with patches in force, and nothing else changed."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.guest.carried import VARIABLE, Carried
from lora_doctor.prescription.patches import patch_names
from lora_doctor.real_run.patched import other_versions
from tests.cli import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

#: Trains for long, and says which signals came and how it was started.
LOOP = """
import json, os, signal, sys, time
came = []
def tell(number, frame):
    came.append(signal.Signals(number).name)
for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
    signal.signal(getattr(signal, name), tell)
print("ready", os.getpid(), flush=True)
end = time.monotonic() + 60
while time.monotonic() < end and not {"SIGINT", "SIGTERM"} & set(came):
    time.sleep(0.02)
time.sleep(0.2)
print("came", json.dumps(came), "terminal", os.isatty(0), flush=True)
sys.exit(7)
"""


def prescription(folder: Path, **changes: Any) -> Path:
    """One patch of PEFT, made for the versions that are installed here."""
    data = {
        "schema_version": "1", "model": "arch:gpt2", "recipe": {},
        "patches": [{"name": "no_embeddings_to_tie"}],
        "versions": {"peft": metadata.version("peft"), "torch": metadata.version("torch")},
    }  # fmt: skip
    path = folder / "lora-doctor.prescription.json"
    path.write_text(json.dumps({**data, **changes}))
    return path


def words(*command: str, prescription: Path | None = None) -> list[str]:
    given = ["--prescription", str(prescription)] if prescription is not None else []
    return [sys.executable, "-m", "lora_doctor", "run", *given, "--", *command]


def environment(folder: Path) -> dict[str, str]:
    (folder / "tmp").mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


def run(
    folder: Path, command: Sequence[str], more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**environment(folder), **(more or {})}, cwd=folder,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def left(folder: Path, seconds: float = 5) -> list[str]:
    """What is left of a run in this folder: processes, and temporary files."""
    end = time.monotonic() + seconds
    while True:
        found = [path.name for path in (folder / "tmp").iterdir()]
        for path in Path("/proc").glob("[0-9]*"):
            try:
                held = (path / "environ").read_bytes()
                line = (path / "cmdline").read_bytes()
            except OSError:
                continue
            if f"TMPDIR={folder / 'tmp'}".encode() in held.split(b"\0"):
                found.append(line.decode())
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    prescription(tmp_path)
    path = tmp_path / "train.py"
    path.write_text(LOOP)
    return path


def test_the_command_is_the_process_that_was_started(tmp_path: Path, loop: Path) -> None:
    """Arguments, streams and exit code are its own, and a signal reaches it, once."""
    process = subprocess.Popen(
        words(sys.executable, str(loop), "--lr", "1"), env=environment(tmp_path), cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == f"ready {process.pid}\n"
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert out == 'came ["SIGUSR1", "SIGTERM"] terminal False\n'
    assert process.returncode == 7
    assert err == "lora-doctor: run: patches in force: no_embeddings_to_tie\n"
    assert left(tmp_path) == []


def test_a_terminal_is_the_commands_own(tmp_path: Path, loop: Path) -> None:
    """So that Ctrl-C comes once."""
    number, terminal = pty.fork()
    if not number:
        os.chdir(tmp_path)
        command = words(sys.executable, str(loop))
        os.execve(command[0], command, environment(tmp_path))
    try:
        _until(terminal, "ready")
        os.write(terminal, b"\x03")
        assert 'came ["SIGINT"] terminal True' in _until(terminal, "came [")
        assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 7
    finally:
        os.close(terminal)
    assert left(tmp_path) == []


def _until(terminal: int, text: str) -> str:
    read, end = "", time.monotonic() + 60
    while text not in read or not read.endswith("\n"):
        assert time.monotonic() < end, read
        try:
            read += os.read(terminal, 4096).decode()
        except OSError:
            break
    return read


@pytest.mark.parametrize(
    ("program", "code"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139), ("exit(3)", 3)],
)
def test_a_shell_sees_how_the_command_ended(tmp_path: Path, program: str, code: int) -> None:
    prescription(tmp_path)
    line = shlex.join(words(sys.executable, "-c", program))
    done = run(tmp_path, ["sh", "-c", f"{line}; echo code $?"])
    assert f"code {code}" in done.stdout
    assert left(tmp_path) == []


def test_other_versions_are_refused_in_one_line(tmp_path: Path, loop: Path) -> None:
    prescription(tmp_path, versions={"torch": metadata.version("torch"), "peft": "0.0.1"})
    done = run(tmp_path, words(sys.executable, str(loop)))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "peft 0.0.1" in done.stderr
    assert metadata.version("peft") in done.stderr


def test_builds_of_a_version_are_the_same_version() -> None:
    """A prescription is made on a laptop and used on a machine with GPUs."""
    assert not other_versions({"torch": "2.9.0+cpu"}, {"torch": "2.9.0+cu128"})
    assert other_versions({"torch": "2.9.0"}, {"torch": "2.9.1"})
    assert "none is installed" in other_versions({"peft": "0.18.0"}, {})


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ((sys.executable, "-I", "train.py"), "leave -I out"),
        (("env", "PYTHONPATH=src", sys.executable, "train.py"), "drops the environment"),
        (("env", "-i", sys.executable, "train.py"), "drops the environment"),
        (("sleep", "1"), "is not a Python program"),
        (("no-such-program",), "no program"),
        ((), "no command"),
    ],
)
def test_what_no_patch_could_be_in_is_refused(
    tmp_path: Path, loop: Path, command: tuple[str, ...], says: str
) -> None:
    done = run(tmp_path, words(*command))
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert left(tmp_path) == []


def test_without_a_prescription_nothing_is_run(tmp_path: Path) -> None:
    done = run(tmp_path, words(sys.executable, "-c", "print('trains')"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--prescription FILE" in done.stderr


#: Has the library of torch in its memory, as a process that trains.
TRAINS = """
import mmap, time
with open("libtorch_cpu.so", "rb") as file:
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print("trains", flush=True)
time.sleep(60)
"""


def test_a_script_that_overwrites_the_path_is_stopped(tmp_path: Path) -> None:
    """What a shell starts can only be seen when it runs; a helper without torch is let be."""
    prescription(tmp_path)
    (tmp_path / "libtorch_cpu.so").write_bytes(b"x")
    (tmp_path / "train.py").write_text(TRAINS)
    (tmp_path / "run.sh").write_text(
        f"{sys.executable} -I -c 'print(\"helper\")'\n"
        f"PYTHONPATH=src {sys.executable} train.py\necho went on\n"
    )
    done = run(tmp_path, words("bash", "run.sh"))
    assert "helper" in done.stdout and "went on" not in done.stdout
    assert "was started without the environment of the command" in done.stderr
    assert done.returncode == -signal.SIGTERM
    assert left(tmp_path) == []


#: A launcher that makes an environment of its own for what it starts, as torch.compile does.
LAUNCHER = """
import os, subprocess, sys
env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RANK": "0"}
assert "peft" not in sys.modules
sys.exit(subprocess.run([sys.executable, "rank.py"], env=env).returncode)
"""
RANK = """
import sys
from lora_doctor.prescription.patches import _installed
assert not _installed and "torch" not in sys.modules
from peft import LoraConfig
print(sorted(_installed))
"""


#: As much of PEFT as the patch changes: the real one takes seconds to be imported.
TUNERS = """
class BaseTuner:
    def _get_tied_target_modules(self, model): ...
"""


def test_patches_are_in_force_in_children_of_launchers(tmp_path: Path) -> None:
    prescription(tmp_path)
    (tmp_path / "launch.py").write_text(LAUNCHER)
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "peft" / "tuners").mkdir(parents=True)
    (tmp_path / "peft" / "__init__.py").write_text("class LoraConfig: ...\n")
    (tmp_path / "peft" / "tuners" / "tuners_utils.py").write_text(TUNERS)
    done = run(tmp_path, words(sys.executable, "launch.py"))
    assert done.stdout == "['no_embeddings_to_tie']\n", done.stderr
    assert done.returncode == 0


def test_what_does_not_fit_ends_the_process(tmp_path: Path) -> None:
    """The versions that a shell script trains with are asked for when PEFT has been imported."""
    (tmp_path / "peft.py").write_text("")
    (tmp_path / "train.py").write_text("import peft\nprint('trains')\n")
    prescription(tmp_path, versions={"peft": "0.0.1"})
    done = run(tmp_path, words("bash", "-c", f"{sys.executable} train.py"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "made for peft 0.0.1" in done.stderr


def test_an_environment_of_bytes_is_carried_on() -> None:
    """Keys of an environment may be bytes; none is there twice then."""
    session = Carried(("a:b",), {"patches": []})
    made = session.environment({b"PYTHONPATH": b"src", b"HOME": b"/h", VARIABLE: "old"})
    assert b"PYTHONPATH" not in made and made[b"HOME"] == b"/h"
    assert made["PYTHONPATH"].endswith(f"{os.pathsep}src")
    assert session.reaches({key: made[key] for key in ("PYTHONPATH", VARIABLE)})
    assert Carried.read(session.text()) == session


def test_every_patch_says_what_it_waits_for() -> None:
    """A patch that waits for PEFT would come too late for what only needs transformers."""
    from lora_doctor.prescription.patches import load_patch

    libraries = {name: getattr(load_patch(name), "LIBRARY", "peft") for name in patch_names()}
    assert libraries.pop("embeddings_are_no_leaves") == "transformers.modeling_utils"
    assert set(libraries.values()) == {"peft"}
