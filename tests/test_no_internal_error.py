"""Whatever the surroundings, a rule, a child or a prescription does, the exit code is what the
README says, standard output holds results only, and the error is one line that says what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_doctor.cli.main import main
from lora_doctor.engine.child_failures import read_answer
from lora_doctor.errors import EvidenceError
from lora_doctor.results.structure import Structure
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.messages import checked
from lora_doctor.sandbox.worker import Outcome, Worker
from tests import diagnoses
from tests.cli import ROOT, Result, lora_doctor

posix = pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def shell(command: str, cwd: Path, **env: str) -> Result:
    """A command line with its redirections; LORA stands for ``lora-doctor``."""
    done = subprocess.run(
        ["sh", "-c", command.replace("LORA", f"{sys.executable} -m lora_doctor")],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **env},
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        # What is loaded may be a text, and is looked for as a file: no file has such a name.
        ("train.py", "import yaml\nfrom peft import LoraConfig\n"
                     "text = yaml.safe_load('lr: 1\\n# {long}')\nLoraConfig(r=8)\n"),
        ("train.yaml", "adapter: lora\nbase_model: {long}\ndatasets: [{{path: {long}}}]\n"),
    ],
    ids=["script", "set-up"],
)  # fmt: skip
def test_a_text_that_is_too_long_for_a_file_name(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text.format(long="b" * 5000))
    code = main(["check", str(tmp_path / name), "--depth", "static"])
    told = capsys.readouterr()
    assert code in (0, 2) and "internal error" not in told.err, told.err


CHECK = "LORA check model --depth static --output-format json"


@posix
def test_closed_standard_streams(model: Path, tmp_path: Path) -> None:
    plain = shell(CHECK, tmp_path)
    assert plain.code == 0
    closed = shell(f"{CHECK} >&-", tmp_path)
    assert closed.code == 2 and "standard output is closed" in closed.one_line_error
    to_file = shell(f"{CHECK} -o report.json >&-", tmp_path)
    assert (to_file.code, to_file.err) == (0, "")
    assert json.loads((tmp_path / "report.json").read_text())["depth"] == "static"
    for redirections in ("<&-", "2>&-", "<&- 2>&-"):
        result = shell(f"{CHECK} {redirections}", tmp_path)
        assert result.code == 0 and json.loads(result.out), redirections
    assert shell(f"{CHECK} <&- >&- 2>&-", tmp_path).code == 2
    asked = shell("LORA explain - <&-", tmp_path)
    assert asked.code == 2 and "standard input is closed" in asked.one_line_error
    junk = shell("printf '\\377\\376 mat1' | LORA explain -", tmp_path)
    assert junk.code == 2 and "internal" not in junk.one_line_error


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_streams_that_take_nothing(model: Path, tmp_path: Path) -> None:
    """No exit code 1 (findings) or 120 because nobody could be told."""
    full = shell(f"{CHECK} >/dev/full", tmp_path)
    assert full.code == 2 and "standard output: cannot be written" in full.one_line_error
    assert shell("LORA check nothing-here --depth static 2>/dev/full", tmp_path).code == 2
    assert shell(f"{CHECK} 2>/dev/full", tmp_path).code == 0
    assert shell(f"{CHECK} >/dev/full 2>/dev/full", tmp_path).code == 2
    assert shell(f"{CHECK} | head -c 1", tmp_path).out == "{"


def rule(body: str, head: str = "") -> str:
    return (
        "from lora_doctor.rule_api import *\n"
        f"{head}\n"
        "class Odd(Rule):\n"
        "    '''Odd.'''\n"
        "    code, name, summary, depth = 'ZZ001', 'odd', 'An odd one.', 'static'\n"
        "    def check(self, case):\n"
        f"        {body}\n" + ("        yield\n" if body != "return self" else "")
    )


GOOD = (
    "self.finding('info', 'm', location=Location('recipe', 'r'), "
    "evidence=(Measurement('a', 1, 'b'),), proof=Proof('measured', 'x'))"
)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("yield 'junk'", "yielded: a str, not a Finding"),
        ("return self", "TypeError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("raise SystemExit(0)", "SystemExit"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise type('Own', (BaseException,), {})('up')", "Own: up"),
        ("raise EOFError", "EOFError"),
        ("raise RecursionError", "RecursionError"),
        (f"yield __import__('dataclasses').replace({GOOD}, severity='fatal')", "severity"),
        (f"yield __import__('dataclasses').replace({GOOD}, message=None)", "message"),
        (f"yield __import__('dataclasses').replace({GOOD}, location='here')", "location"),
        (f"yield __import__('dataclasses').replace({GOOD}, evidence=('x',))", "evidence"),
        (f"yield __import__('dataclasses').replace({GOOD}, proof=1)", "proof"),
        (f"yield __import__('dataclasses').replace({GOOD}, fixes=[1])", "fixes"),
        (f"yield __import__('dataclasses').replace({GOOD}, fixes=(1,))", "fixes"),
        (f"yield __import__('dataclasses').replace({GOOD}, explains=(1,))", "explains"),
    ],
)
def test_a_rule_that_does_what_no_rule_may(model: Path, body: str, why: str) -> None:
    """It is skipped with the reason, and the answer stays open: exit code 2, not 1 or 0."""
    import lora_doctor as package

    folder = model.parent / "rules"
    folder.mkdir()
    (folder / "odd.py").write_text(rule(body))
    diagnosis = package.check(str(model), depth="static", rules=[str(folder)])
    skipped = {item.rule: item.reason for item in diagnosis.skipped}
    assert "the rule itself failed" in skipped["ZZ001"] and why in skipped["ZZ001"]
    assert diagnosis.undetermined and "ZZ001" in diagnosis.undetermined
    assert "ZZ001" not in diagnosis.passed


def test_an_interrupt_in_a_rule_stays_one(model: Path) -> None:
    folder = model.parent / "rules"
    folder.mkdir()
    (folder / "odd.py").write_text(rule("raise KeyboardInterrupt"))
    result = lora_doctor("check", model, "--depth", "static", "--rules", folder)
    assert (result.code, result.one_line_error) == (-signal.SIGINT, "lora-doctor: interrupted")


def test_rule_files_that_cannot_be_rules(model: Path) -> None:
    folder = model.parent / "rules"
    folder.mkdir()
    for head, says in (
        ("raise type('Own', (BaseException,), {})('up')", "Own: up"),
        ("raise SystemExit(0)", "SystemExit"),
    ):
        (folder / "odd.py").write_text(rule("return", head))
        result = lora_doctor("check", model, "--depth", "static", "--rules", folder)
        assert result.code == 2 and says in result.one_line_error
    (folder / "odd.py").write_text(rule("return") + "    symptoms = (Symptom('('),)\n")
    result = lora_doctor("check", model, "--depth", "static", "--rules", folder)
    assert result.code == 2 and "is not a regular expression" in result.one_line_error


def test_what_a_rule_file_prints_is_no_result(model: Path) -> None:
    """By print, on the descriptor, by a program, and when the process ends."""
    folder = model.parent / "rules"
    folder.mkdir()
    head = (
        "import atexit, os, subprocess\n"
        "print('at import'); atexit.register(print, 'at exit')\n"
        "subprocess.run(['echo', 'from a program'])\n"
    )
    (folder / "loud.py").write_text(rule("print('check'); os.write(1, b'raw\\n'); return", head))
    options = ("check", model, "--depth", "static", "--rules", folder, "--output-format", "json")
    result = lora_doctor(*options)
    assert json.loads(result.out)["verdict"] == "undetermined" and result.code == 0
    for word in ("at import", "check", "raw", "from a program", "at exit"):
        assert word in result.err
    there = lora_doctor(*options, "-o", "/dev/stdout")
    assert json.loads(there.out) and "at import" in there.err
    listed = lora_doctor("rules", "--rules", folder)
    assert "ZZ001" in listed.out and "at import" not in listed.out


PRESCRIPTION: dict[str, Any] = {
    "schema_version": "1", "model": "m", "edits": [], "recipe": {"r": 8}, "patches": [],
    "versions": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patches": [{"name": "os", "parameters": {}}]}, "patches[0]: patch 'os': no such patch"),
        ({"patches": [{"name": "_support", "parameters": {}}]}, "no such patch"),
        (
            {"patches": [{"name": "drop_none_arguments", "parameters": {"x": 1}}]},
            "unexpected keyword argument 'x'",
        ),
        ({"edits": [{"key": "__class__", "value": 1}]}, "edits[0]: '__class__' is not a key"),
        ({"edits": [{"key": "__class__", "remove": True}]}, "is not a key of a recipe"),
        ({"edits": [{"key": "values", "value": {}}]}, "is not a key of a recipe"),
    ],
)
def test_a_prescription_is_checked_at_every_depth(
    model: Path, change: dict[str, Any], says: str
) -> None:
    file = model.parent / "p.json"
    file.write_text(json.dumps({**PRESCRIPTION, **change}))
    result = lora_doctor("check", model, "--depth", "static", "--prescription", file)
    assert result.code == 2 and says in result.one_line_error and "p.json" in result.err
    recipe = model.parent / "r.yaml"
    recipe.write_text("r: 8\n")
    both = lora_doctor(
        "check", model, "--depth", "static", "--prescription", file, "--recipe", recipe
    )
    assert both.code == 2 and says in both.one_line_error
    file.write_text(json.dumps(PRESCRIPTION))
    assert lora_doctor("check", model, "--depth", "static", "--prescription", file).code == 0


GOOD_ANSWER = {
    "kind": "answer", "id": 1, "value": 1, "failure": None, "seconds": 0.1, "peak": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"}, {"kind": None}, {"id": "1"}, {"id": True}, {"peak": "much"},
        {"seconds": None}, {"failure": "bad"}, {"failure": {}},
        {"failure": {"kind": "x", "type": "", "message": ""}},
        {"failure": {"kind": "crash", "type": 1, "message": ""}},
        {"failure": {"kind": "crash", "type": "", "message": "", "more": ""}},
        {"failure": {"kind": "exception", "type": "", "message": "", "cause": "x"}},
        {"failure": {"kind": "exception", "type": "", "message": "", "cause": {"type": 1}}},
        {"kind": "started"}, {"kind": "started", "pid": -1}, {"kind": "started", "pid": 0},
        {"kind": "started", "pid": 1}, {"kind": "exited", "code": "0"},
        {"kind": "progress", "text": 3}, {"kind": "ready", "errors": {"torch": 1}},
    ],
)  # fmt: skip
def test_a_message_that_no_child_of_ours_sends_is_none(change: dict[str, Any]) -> None:
    """A process id of -1 would be killed with all that there is."""
    assert checked(GOOD_ANSWER) == GOOD_ANSWER
    assert checked({**GOOD_ANSWER, **change}) is None
    for junk in (None, 3, "x", [], {}):
        assert checked(junk) is None


FORGER = """
import json, os
def forge(lines):
    for descriptor in range(3, 64):
        try:
            for line in lines:
                os.write(descriptor, ("\\n" + line + "\\n").encode())
        except OSError:
            continue
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "answer", "id": 1}',
        '{"kind": "exited", "id": 1}',
        '{"kind": "started", "id": 1, "pid": "x"}',
        '{"kind": "progress", "id": 1}',
        "[" * 100_000,
    ],
)
def test_a_child_that_talks_nonsense_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "forger.py").write_text(FORGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Worker(preload=(), packages=("forger",)) as worker:
        outcome = worker.run(
            "forger:forge", {"lines": [line]}, time_limit=20, progress=lambda text: None
        )
    assert outcome.failure is not None and outcome.failure.kind == "crash"


@pytest.mark.parametrize(
    "value",
    [None, 3, [], {}, "x", {"towers": 3}, {"recipe": []}, {"model_class": 3}, {"groups": [[1]]}],
)
def test_an_answer_that_is_none_is_missing_evidence(value: Any) -> None:
    from dataclasses import asdict

    healthy = asdict(diagnoses.phi3().structure)  # type: ignore[call-overload]
    whole = {**healthy, **value} if isinstance(value, dict) and value else value
    with pytest.raises(EvidenceError, match="sent an invalid answer"):
        read_answer(Structure, Outcome(value=whole), "the meta device model")
    assert read_answer(Structure, Outcome(value=healthy), "x") == diagnoses.phi3().structure


def test_a_contract_comes_back_as_it_was() -> None:
    """With numbers that JSON has no word for."""
    from dataclasses import asdict

    from lora_doctor.sandbox.worker import to_json

    for made in (diagnoses.phi3().before, diagnoses.vision_language().before):
        assert made is not None
        data = json.loads(json.dumps(to_json(asdict(made))))
        assert read_answer(Verification, Outcome(value=data), "x").outcome == made.outcome


@pytest.mark.skipif(sys.platform != "linux", reason="counts by /proc")
def test_memory_of_what_a_task_starts_counts(tmp_path: Path) -> None:
    """A program that the model's code starts is held to the same limit."""
    grandchild = f"x = bytearray(b'x') * {300 << 20}; import time; time.sleep(60)"
    with Worker(preload=(), packages=("subprocess",)) as worker:
        outcome = worker.run(
            "subprocess:call",
            {"args": [sys.executable, "-c", grandchild]},
            time_limit=50,
            memory_limit=200 << 20,
        )
    assert outcome.failure is not None and outcome.failure.kind == "memory"
    assert outcome.peak_rss > 200 << 20


FORKS = """
import os, time
from lora_doctor.sandbox import memory
kept = bytearray(b"x") * (200 << 20)
wake, awake = os.pipe()
pids = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        os.close(awake)
        os.read(wake, 1)
        os._exit(0)
    pids.append(pid)
time.sleep(0.5)
plain = memory.resident(os.getpid())
exact = memory.resident(os.getpid(), limit=400 << 20)
high = memory.resident(os.getpid(), limit=1 << 40)
os.close(awake)
for pid in pids:
    os.waitpid(pid, 0)
assert len(kept) == 200 << 20
print(plain >> 20, exact >> 20, high >> 20, memory.resident(pids[0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts by /proc")
def test_pages_that_forks_share_count_once() -> None:
    """Four forks of a process of 200 MiB are no gigabyte. In a process of its own: that of the test
    runner may have children of other tests."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, check=True, timeout=60
    )
    plain, exact, high, gone = map(int, done.stdout.split())
    assert plain > 900
    assert 200 < exact < 600
    assert high == pytest.approx(plain, rel=0.1)
    assert gone == 0
