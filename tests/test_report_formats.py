"""A report format is one file: written into the package, or brought by an installed one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.package_copy import copy_package, python
from tests.package_copy import lora_doctor_from as run

TALLY = '''\
"""``tally``: how many findings there are, a line for each severity."""

from collections import Counter

NAME = "tally"


def render(diagnosis, *, color=False, width=80, verbose=False, encoding="utf-8"):
    counts = Counter(finding.severity for finding in diagnosis.findings)
    lines = [f"{severity} {count}" for severity, count in sorted(counts.items())]
    return "".join(f"{line}\\n" for line in [str(diagnosis.model), *lines])
'''
#: A recipe of which two rules say something without a model being built.
CHECK = ("check", "train.py", "--output-format", "tally")
SCRIPT = "from peft import LoraConfig\nconfig = LoraConfig(r=8)\n"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a training script, from where the command line is called."""
    folder = tmp_path / "work"
    folder.mkdir()
    folder.joinpath("train.py").write_text(SCRIPT)
    return folder


def test_a_file_in_reports_is_a_format(tmp_path: Path, work: Path) -> None:
    """Nothing else is touched: the command line takes it, its help names it, the API renders it."""
    package = copy_package(tmp_path / "copy")
    assert "tally" not in run(package, "check", "--help", cwd=work).stdout
    package.joinpath("lora_doctor/reports/tally.py").write_text(TALLY)
    done = run(package, *CHECK, cwd=work)
    assert done.stdout.splitlines()[0] == "train.py", done.stderr
    helped = run(package, "check", "--help", cwd=work)
    assert "|tally]" in helped.stdout
    code = (
        "import lora_doctor, lora_doctor.reports as r;"
        "print(r.render(lora_doctor.check('train.py'), 'tally'), end='')"
    )
    from_api = python(package, "-c", code, cwd=work)
    assert from_api.stdout == done.stdout, from_api.stderr


def install(site: Path, module: str, text: str) -> None:
    """A module as ``pip`` leaves it, with its entry point."""
    site.mkdir(exist_ok=True)
    site.joinpath(f"{module}.py").write_text(text)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text(f"[lora_doctor.reports]\nany = {module}\n")


def test_an_installed_package_adds_a_format(tmp_path: Path, work: Path) -> None:
    install(tmp_path / "site", "company_report", TALLY)
    done = run(tmp_path / "site", *CHECK, cwd=work)
    assert done.stdout.splitlines()[0] == "train.py", done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit(3)\n", "cannot be imported: SystemExit: 3; repair or uninstall it"),
        ("NAME = 'tally'\n", "has no NAME or no render"),
        (TALLY.replace('"tally"', '"json"'), "rename one of them"),
    ],
)
def test_a_bad_format_of_another_package_is_one_line(
    tmp_path: Path, work: Path, text: str, message: str
) -> None:
    install(tmp_path / "site", "company_report", text)
    done = run(tmp_path / "site", "check", "train.py", cwd=work)
    assert done.returncode == 2
    assert message in done.stderr
    assert "company_report" in done.stderr
    assert done.stderr.count("\n") == 1
    assert run(tmp_path / "site", "--version", cwd=work).returncode == 0


def test_an_unknown_format_is_refused_with_those_that_there_are(work: Path) -> None:
    done = run(work, "check", "train.py", "--output-format", "pdf", cwd=work)
    assert done.returncode == 2
    named = re.search(r"'pdf' is not one of (.+)", done.stderr)
    assert named is not None, done.stderr
    names = re.findall(r"'(\w+)'", named[1])
    assert names[0] == "full" and names[1:] == sorted(names[1:])
    assert {"full", "concise", "html", "json"} <= set(names)
