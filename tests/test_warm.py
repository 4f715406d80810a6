"""Processes that tests start warm are those that a user starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
