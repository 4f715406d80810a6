"""Processes that tests start warm are those that a user starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.dry_run import launch
from lora_doctor.dry_run.captured import Captured
from lora_doctor.dry_run.command import command_of
from lora_doctor.dry_run.judge import ACTS
from lora_doctor.guest.session import Session
from tests import warm
from tests.cli import ROOT, lora_doctor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")

TRACEBACK = "AttributeError: 'LlamaModel' object has no attribute 'prepare_inputs_for_generation'\n"


def place() -> warm.Place:
    assert warm.current is not None
    return warm.current.command_line()


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("explain", "-"), TRACEBACK),
        (("check", "./nope"), ""),
        (("check", "model", "--depth", "static", "--output-format", "concise"), ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_fork_says_and_writes_what_a_process_of_its_own_does(
    arguments: tuple[str, ...], stdin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    forked = lora_doctor(*arguments, cwd=tmp_path, stdin=stdin)
    monkeypatch.setattr(warm, "current", None)
    assert lora_doctor(*arguments, cwd=tmp_path, stdin=stdin) == forked


def test_where_imports_would_differ_nothing_is_forked(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert place().fits({**environment, "COLUMNS": "40"}, tmp_path)
    assert not place().fits({**environment, "HF_ENDPOINT": "http://localhost"}, tmp_path)
    assert not place().fits({**environment, "PYTHONPATH": str(tmp_path)}, tmp_path)
    (tmp_path / "mine.py").touch()
    assert place().fits(environment, tmp_path)
    (tmp_path / "click.py").touch()
    assert not place().fits(environment, tmp_path), "nothing shows that it is not imported"


def test_a_fork_is_a_process_that_a_signal_ends(tmp_path: Path) -> None:
    """And it leads a session of its own, with nothing of who asked for it."""
    words = ["explain", "-"]  # waits for its standard input
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    request = {"env": environment, "cwd": str(tmp_path), "arguments": words}
    forked = warm.Forked(place(), request)
    assert os.getsid(forked.pid) == forked.pid != os.getsid(0)
    with pytest.raises(subprocess.TimeoutExpired):
        forked.wait(0)
    forked.send_signal(9)
    assert (forked.wait(20), forked.poll()) == (-9, -9)
    assert not Path(f"/proc/{forked.pid}").exists()
    for stream in (forked.stdin, forked.stdout, forked.stderr):
        assert stream is not None
        stream.close()


def test_the_command_line_is_forked_with_light_imports_only() -> None:
    """The hub's address is read when its library is imported, the number of threads by torch."""
    code = (
        "import sys; from tests.warm_server import COMMAND_LINE, _import; _import(COMMAND_LINE)\n"
        "print('lora_doctor.cli.main' in sys.modules, [name for name in ('torch', 'transformers',"
        "'peft', 'numpy', 'huggingface_hub', 'requests', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True []\n"


#: What a script can see of how it was started, and an error of its own.
SCRIPT = """'''Text.'''
import os, sys
from peft import LoraConfig
from transformers import LlamaConfig
print(f"\\nparent {os.getppid()}")
print(__name__, __file__, __doc__, __spec__, __package__, sorted(vars()))
print(sys.argv, sys.orig_argv, sys.path, sys.modules["__main__"].__dict__ is globals())
print(sys.stdin.read(), os.getsid(0) == os.getpid(), os.getcwd(), sorted(os.environ.items()))
LlamaConfig().save_pretrained("model")

def fails():
    raise ValueError("of the script")

fails()
"""


def _dry_run(script: Path, folder: Path) -> tuple[int, list[str], list[dict[str, Any]]]:
    """Exit code, output, and what the guest told, of a dry run of a script."""
    folder.mkdir()
    session = Session(folder, "nonce", ACTS)
    session.write()
    ended = launch.run(
        command_of([sys.executable, str(script), "--word"]), session,
        launch.environment_of(session, os.environ), seconds=300.0, memory_limit=1 << 40,
        progress=lambda text: None,
    )  # fmt: skip
    told = [
        {name: value for name, value in record.items() if name not in ("time", "pid")}
        for kind in ("folder", "redirected", "config", "error", "exit", "note", "refused")
        for record in Captured.read(session.records).all(kind)
    ]
    assert (session.outputs / str(Path.cwd())[1:] / "model" / "config.json").exists()
    output = ended.output[ended.output.index("\nparent ") + 1 :].replace(str(folder), "SESSION")
    return ended.code, output.splitlines(), told


def test_a_script_of_a_dry_run_is_forked_and_is_as_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name, arguments, paths, environment, output, where it saves, and the frames of its error:
    those that a user's Python gives it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    assert warm.current is not None
    place = warm.current.script()
    forked = _dry_run(script, tmp_path / "forked")
    monkeypatch.setattr(warm, "_is_plain_script", lambda words: False)
    cold = _dry_run(script, tmp_path / "cold")
    assert (forked[1].pop(0), cold[1].pop(0)) == (f"parent {place.pid}", f"parent {os.getpid()}")
    assert forked == cold
    assert forked[0] == 1 and {one["kind"] for one in forked[2]} >= {"redirected", "error", "exit"}


def test_a_script_with_other_imports_is_not_forked(tmp_path: Path) -> None:
    """It would find more imported than it imports."""
    script = tmp_path / "script.py"
    script.write_text("import peft\nfrom transformers.utils import hub\n")
    assert warm._is_plain_script([sys.executable, str(script)])
    assert not warm._is_plain_script([sys.executable, "-u", str(script)])
    assert not warm._is_plain_script(["/usr/bin/python9", str(script)])
    script.write_text("import transformers\nprint('import peft')\n")
    assert not warm._is_plain_script([sys.executable, str(script)])
