"""The report on Gemma 3 in SALMONN: its own remedy hides the NaN instead of curing it.

It replaces a loss that is not finite by 0.001 and clamps embeddings. A script that does so is a
finding when it is given to `check`; what it really does to the weights is shown with torch alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import lora_doctor
from lora_doctor.errors import InputError
from lora_doctor.sandbox.worker import Worker
from tests import cli
from tests.scenario import FOUND_BY_HAND, record

REPORT = "Gemma 3 in SALMONN"
SCRIPTS = Path(__file__).parent / "scripts"


def run_script(worker: Worker, failure: str, script: str, plainly: Any) -> lora_doctor.Diagnosis:
    """`prove` for a script: what is read has no contract that could be run afterwards."""
    plainly()
    found = lora_doctor.fix(str(SCRIPTS / script), unsafe_fixes=True, worker=worker)
    assert "LD407" in {item.rule for item in found.findings}
    assert not found.applied, "no NaN is ever replaced by a fix, nor a script rewritten"
    clean = lora_doctor.check(str(SCRIPTS / "nan_stops.py"), worker=worker)
    assert "LD407" in clean.passed
    record(REPORT, failure, "LD407", FOUND_BY_HAND)
    return found


def overflowing() -> tuple[Any, Any]:
    """A layer whose loss is NaN, as an overflow in float16 makes it: infinity minus infinity."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    output = torch.exp(layer(torch.ones(2, 4)).abs() * 1e5)
    return layer, (output - output).mean()


def a_replaced_loss_teaches_nothing() -> None:
    """A constant has no graph: no weight gets a gradient, while the log shows 0.001."""
    import torch

    layer, loss = overflowing()
    assert torch.isnan(loss)
    loss = torch.tensor(0.001, requires_grad=True)
    loss.backward()
    assert all(weight.grad is None for weight in layer.parameters())


def a_cleaned_loss_loses_the_weights() -> None:
    """`nan_to_num` shows a finite loss and still sends NaN to every weight behind it: the zero
    that it passes back meets the infinite slope of what overflowed."""
    import torch

    layer, loss = overflowing()
    shown = torch.nan_to_num(loss)
    assert torch.isfinite(shown)
    shown.backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert not torch.isfinite(layer.weight).any()
    assert torch.isnan(torch.clamp(torch.tensor(float("nan")), -1e4, 1e4)), "clamp keeps NaN"


def test_the_report_s_constant_loss(worker: Worker) -> None:
    found = run_script(
        worker,
        "The script replaces a NaN loss by a constant and clamps bad embeddings",
        "nan_replaced.py",
        a_replaced_loss_teaches_nothing,
    )
    lines = (SCRIPTS / "nan_replaced.py").read_text("utf-8").splitlines()
    at = [item.location.line for item in found.findings if item.rule == "LD407"]
    assert ["clamp" in lines[line - 1] for line in at if line] == [True, False]
    assert "0.001" in lines[(at[1] or 0) - 1]


def test_gradients_and_losses_that_are_cleaned(worker: Worker) -> None:
    found = run_script(
        worker,
        "The script turns NaN in losses and gradients into zero",
        "gradients_cleaned.py",
        a_cleaned_loss_loses_the_weights,
    )
    assert [item.evidence[1].what for item in found.findings] == [
        "loss that is replaced", "gradient that is replaced",
    ]  # fmt: skip


# --- a script as MODEL, at the terminal -----------------------------------------------------------


def test_a_script_is_read_and_never_run(tmp_path: Path) -> None:
    """Whatever it does when it is imported does not happen, at any depth that is asked for."""
    script = tmp_path / "train.py"
    text = (SCRIPTS / "nan_replaced.py").read_text("utf-8")
    script.write_text(f"open('ran', 'w').close()\nraise SystemExit(7)\n{text}", "utf-8")
    for more in ((), ("--depth", "static"), ("--depth", "full"), ("--trust-remote-code",)):
        result = cli.lora_doctor("check", "train.py", *more, cwd=tmp_path)
        assert result.code == 1 and "train.py:24" in result.out, result
        assert not (tmp_path / "ran").exists()
    assert cli.lora_doctor("check", "./train.py", cwd=tmp_path).code == 1


def test_a_clean_script_is_not_called_healthy(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "nan_stops.py", tmp_path)
    result = cli.lora_doctor("check", "nan_stops.py", "--output-format", "json", cwd=tmp_path)
    assert result.code == 2, result  # it was not run, and nobody asked for less
    data = json.loads(result.out)
    assert data["model"]["kind"] == "script" and data["verdict"] == "undetermined"
    assert {"LD407", "LD507"} <= set(data["passed"])
    reasons = {item["reason"] for item in data["skipped"]}
    asked_for = ("script", "--adapter", "dry-run", "training framework", "no optimizer",
                 "--data", "values that could be", "nothing is imported")  # fmt: skip
    assert all(any(word in reason for word in asked_for) for reason in reasons), reasons
    shown = cli.lora_doctor("check", "nan_stops.py", cwd=tmp_path)
    assert "read and not run" in " ".join(shown.out.split()) and "Next:" not in shown.out


def test_fix_changes_no_script(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "nan_replaced.py", tmp_path)
    before = (tmp_path / "nan_replaced.py").read_bytes()
    result = cli.lora_doctor("fix", "nan_replaced.py", "--apply", "--unsafe-fixes", cwd=tmp_path)
    assert result.code == 1 and "manual" in result.out and "wrote" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["nan_replaced.py"]
    assert (tmp_path / "nan_replaced.py").read_bytes() == before


def test_a_script_cannot_be_verified(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "nan_stops.py", tmp_path)
    result = cli.lora_doctor("verify", "nan_stops.py", cwd=tmp_path)
    assert result.code == 2 and not result.out
    assert "never run" in result.err and result.err.count("\n") == 1
    with pytest.raises(InputError, match="never run"):
        lora_doctor.verify(str(tmp_path / "nan_stops.py"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [("broken.py", "def f(:\n", "line 1"), ("missing.py", None, "no such file")],
)
def test_bad_scripts_are_one_line(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    result = cli.lora_doctor("check", name, cwd=tmp_path)
    assert result.code == 2 and says in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("form", ["full", "concise", "json", "html"])
def test_every_report_shows_a_script(tmp_path: Path, form: str) -> None:
    """Also one whose lines would be markup elsewhere."""
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\nfor b in d:\n    loss = m(b, '<script>alert(1)</script>[red]').loss\n"
        "    loss = torch.nan_to_num(loss, nan=len('<b>[bold]'))\n    loss.backward()\n"
    )
    result = cli.lora_doctor("check", "train.py", "--output-format", form, cwd=tmp_path)
    assert result.code == 1 and "LD407" in result.out
    if form == "html":
        assert "<b>[bold]" not in result.out and "&lt;b&gt;" in result.out
