"""Whether the tests notice when a rule is changed: `python -m tools.mutants [CODE ...]`.

cosmic-ray changes one operator, number or constant at a time in the file of a rule (a *mutant*) and
runs the tests of that rule until one fails: those of tests/test_rule_branches*.py first, which
build no model; then its examples, with what its page quotes of them; then the test functions of
other files that name its code, without those marked slow (`--slow` runs these as well, `--quick`
none of other files). A mutant that no test notices has survived. The work is done in copies of the
checkout, one for each of `--jobs` rules at a time, so that no file of yours is changed.

What is not tried after `--minutes` is counted and not judged. Exit code 1 where fewer than 85 % of
the mutants that were tried were killed.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Killed mutants of all, at least.
GOAL = 0.85
#: Without CODE: rules of several depths and topics, in which a sentence or a piece of evidence is
#: chosen by a condition. Those whose tests take longest come last.
SAMPLE = ("LD407", "LD601", "LD504", "LD505", "LD402", "LD604", "LD303", "LD104")
_LEFT_OUT = (".git", ".venv*", ".nox", ".mypy_cache", ".ruff_cache", "__pycache__", "*.egg-info")
#: Of what rules say, on cases made by hand: seconds where examples take minutes.
_BRANCHES = "test_rule_branches"
_EXAMPLES = "test_rules.py"
_SLOW = "pytest.mark.slow"


def rule_file(code: str, root: Path) -> Path:
    """The file of a rule, relative to ``root``.

    Raises:
        SystemExit: no rule has this code.
    """
    found = sorted((root / "rules").glob(f"{code.lower()}_*.py"))
    if not found:
        raise SystemExit(f"tools.mutants: {code}: matches no rule")
    return found[0].relative_to(root)


def naming(code: str, text: str, *, slow: bool = True) -> list[str]:
    """The test functions of a file that name the code, or a function of the file that does.

    Args:
        slow: also those that are marked slow, alone or with their file.
    """
    lines = text.splitlines()
    bodies, all_slow = {}, False
    for node in ast.parse(text).body:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(one.lineno for one in decorators)])
        body = "\n".join(lines[first - 1 : node.end_lineno])
        if isinstance(node, ast.FunctionDef):
            bodies[node.name] = body
        all_slow = all_slow or (body.startswith("pytestmark") and _SLOW in body)
    helpers = [name for name, body in bodies.items()
               if code in body and not name.startswith("test_")]  # fmt: skip
    return [
        name
        for name, body in bodies.items()
        if name.startswith("test_")
        and any(word in body for word in (code, *helpers))
        and (slow or not (all_slow or _SLOW in body))
    ]


def test_commands(code: str, root: Path, *, slow: bool = False, quick: bool = False) -> list[str]:
    """Arguments of pytest, the quickest tests first."""
    nodes = {
        path.name: [f"tests/{path.name}::{name}" for name in naming(code, text, slow=slow)]
        for path in sorted((root / "tests").glob("test_*.py"))
        if code in (text := path.read_text(encoding="utf-8"))
    }
    branches = [node for name, found in nodes.items() if name.startswith(_BRANCHES)
                for node in found]  # fmt: skip
    others = [node for name, found in nodes.items() for node in found
              if not quick and name != _EXAMPLES and not name.startswith(_BRANCHES)]  # fmt: skip
    steps = (" ".join(branches), f"tests/{_EXAMPLES} -k {code}", " ".join(others))
    return [words for words in steps if words]


@dataclass
class Tried:
    """What became of the mutants of one rule."""

    code: str
    #: ``file:line operator: before -> after``, and whether a test noticed it.
    mutants: list[tuple[str, bool]] = field(default_factory=list)
    #: Chosen, and not tried before the time was over.
    left: int = 0
    #: Why none was tried; empty where some were.
    why: str = ""


def tried(codes: Sequence[str], words: Sequence[str], root: Path) -> list[Tried]:
    """The mutants of these rules, in the checkout at ``root``. words: the options."""
    # Before whatever is installed, also in the processes that the tests start.
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tools.forked_tests", *words, *codes]
    found = {code: Tried(code, why="no time was left") for code in codes}
    with (
        (root / "tests.log").open("w") as log,
        subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            note(json.loads(line), found)
    if process.returncode:
        last = (root / "tests.log").read_text(errors="replace")[-2000:]
        raise SystemExit(f"tools.mutants: the tests could not be run:\n{last}")
    return list(found.values())


def note(told: Mapping[str, Any], found: Mapping[str, Tried]) -> None:
    """Add what `tools.forked_tests` told to the rule that it is about."""
    rule = found[told["code"]]
    rule.why, rule.left = told.get("why", ""), told.get("left", rule.left)
    if "place" in told:
        rule.mutants.append((f"{told['place']}: {told['change']}", told["killed"]))
        state = "killed  " if told["killed"] else "survived"
        print(f"{state}  {rule.mutants[-1][0]}", flush=True)


def report(rules: Iterable[Tried]) -> int:
    """Print what survived and the share that was killed; returns the exit code."""
    every = list(rules)
    mutants = [one for rule in every for one in rule.mutants]
    for rule in every:
        killed = sum(is_killed for _, is_killed in rule.mutants)
        print(f"{rule.code}  {killed} of {len(rule.mutants)} killed")
    for place, is_killed in mutants:
        if not is_killed:
            print(f"survived  {place}")
    for rule in every:
        if rule.why or rule.left:
            print(f"not tried  {rule.code}: {rule.why or f'{rule.left} mutants, time is over'}")
    killed = sum(is_killed for _, is_killed in mutants)
    share = killed / len(mutants) if mutants else 0.0
    print(f"{killed} of {len(mutants)} mutants killed ({share:.0%}, goal {GOAL:.0%})")
    return 0 if share >= GOAL else 1


def options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.mutants", description=description)
    parser.add_argument("codes", nargs="*", default=list(SAMPLE), metavar="CODE")
    parser.add_argument("--most", type=int, default=6, help="Mutants of a rule.")
    parser.add_argument("--seed", type=int, default=0, help="Which mutants are chosen.")
    parser.add_argument("--minutes", type=float, default=15.0, help="Time for all of it.")
    parser.add_argument("--jobs", type=int, default=2, help="Rules at a time.")
    parser.add_argument("--slow", action="store_true", help="Also slow tests of other files.")
    parser.add_argument("--quick", action="store_true", help="No tests of other files.")
    return parser


def main(words: list[str]) -> int:
    given = options(__doc__).parse_args(words)
    shared = [f"--most={given.most}", f"--seed={given.seed}", f"--minutes={given.minutes}"]
    shared += [f"--{name}" for name in ("slow", "quick") if getattr(given, name)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:

        def some(number: int) -> list[Tried]:
            root = Path(folder) / str(number)
            shutil.copytree(ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
            return tried(given.codes[number :: given.jobs], shared, root)

        jobs = min(given.jobs, len(given.codes))
        with ThreadPoolExecutor(jobs) as pool:
            return report([one for found in pool.map(some, range(jobs)) for one in found])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
