"""Whether the tests notice when a rule is changed: `python -m tools.mutants [CODE ...]`.

cosmic-ray changes one operator, number or constant at a time in the file of a rule (a *mutant*) and
runs the tests of that rule until one fails: those of tests/test_rule_branches.py first, which build
no model; then its examples, with what its page quotes of them; then the test functions of other
files that name its code, without those marked slow (`--slow` runs these as well). A mutant that no
test notices has survived. The work is done in copies of the checkout, one for each of `--jobs`
rules at a time, so that no file of yours is changed.

What is not tried after `--minutes` is counted and not judged. Exit code 1 where fewer than 85 % of
the mutants that were tried were killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import queue
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
#: Killed mutants of all, at least.
GOAL = 0.85
#: Without CODE: rules of several depths and topics, in which a sentence or a piece of evidence is
#: chosen by a condition. Those whose tests take longest come last.
SAMPLE = ("LD407", "LD601", "LD504", "LD505", "LD402", "LD604", "LD303", "LD104")
#: Annotations are never evaluated: `str | None` can be any other operation.
_EQUIVALENT = ("core/ReplaceBinaryOperator_BitOr_",)
_LEFT_OUT = (".git", ".venv*", ".nox", ".mypy_cache", ".ruff_cache", "__pycache__", "*.egg-info")
#: Of what rules say, on cases made by hand: seconds where examples take minutes.
_BRANCHES = "test_rule_branches.py"
_EXAMPLES = "test_rules.py"
_SLOW = "pytest.mark.slow"
_CONFIG = """\
[cosmic-ray]
module-path = [{module}]
timeout = {timeout}
excluded-modules = []
test-command = {command}
[cosmic-ray.distributor]
name = "local"
"""


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


def test_commands(code: str, root: Path, *, slow: bool = False) -> list[str]:
    """Arguments of pytest, the quickest tests first."""
    nodes = {
        path.name: [f"tests/{path.name}::{name}" for name in naming(code, text, slow=slow)]
        for path in sorted((root / "tests").glob("test_*.py"))
        if code in (text := path.read_text(encoding="utf-8"))
    }
    branches, _ = nodes.pop(_BRANCHES, []), nodes.pop(_EXAMPLES, [])
    others = [node for found in nodes.values() for node in found]
    steps = (" ".join(branches), f"tests/{_EXAMPLES} -k {code}", " ".join(others))
    return [words for words in steps if words]


def shell_command(arguments: Iterable[str]) -> str:
    """One command that ends with the first tests that fail."""
    pytest = f"{shlex.quote(sys.executable)} -m pytest -x -q -n 0 -p no:cacheprovider"
    return shlex.join(["sh", "-c", " && ".join(f"{pytest} {words}" for words in arguments)])


@dataclass
class Tried:
    """What became of the mutants of one rule."""

    code: str
    #: ``file:line operator``, and whether a test noticed it.
    mutants: list[tuple[str, bool]] = field(default_factory=list)
    #: Chosen, and not tried before the time was over.
    left: int = 0
    #: Why none was tried; empty where some were.
    why: str = ""


def tried(code: str, chosen: argparse.Namespace, root: Path, end: float) -> Tried:
    """The mutants of one rule, in the checkout at ``root``, until ``end`` (``time.monotonic``)."""
    tests = shell_command(test_commands(code, root, slow=chosen.slow))
    begun = time.monotonic()
    with (root / f"{code}.log").open("w") as log:
        failed = run_until(end, shlex.split(tests), root, log)
    if time.monotonic() >= end:
        return Tried(code, why="no time was left")
    if failed:
        return Tried(code, why=f"its tests fail as it is: {tests}")
    # A mutant that loops is seen by the time that it takes.
    timeout = 30 + 3 * (time.monotonic() - begun)
    config, session = root / f"{code}.toml", root / f"{code}.sqlite"
    config.write_text(_CONFIG.format(
        module=json.dumps(str(rule_file(code, root))), timeout=timeout,
        command=json.dumps(tests)), encoding="utf-8")  # fmt: skip
    cosmic_ray = [sys.executable, "-m", "cosmic_ray.cli"]
    subprocess.run([*cosmic_ray, "init", str(config), str(session)], cwd=root, check=True)
    chance = random.Random(f"{code} {chosen.seed}")
    wanted = choose(session, chosen.most, chance)
    with (root / f"{code}.log").open("a") as log:
        ended = run_until(end, [*cosmic_ray, "exec", str(config), str(session)], root, log)
    if ended and time.monotonic() < end:
        return Tried(code, why=f"cosmic-ray ended with exit code {ended}")
    done = list(results(session))
    print(f"{code}: {sum(killed for _, killed in done)} of {len(done)} killed", flush=True)
    return Tried(code, done, wanted - len(done))


def run_until(end: float, words: list[str], root: Path, log: IO[str]) -> int:
    """Exit code; the process and what it started are killed at ``end`` (``time.monotonic``)."""
    if time.monotonic() >= end:
        return -signal.SIGKILL
    # Before whatever is installed, also in the processes that the tests start.
    path = filter(None, (str(root), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    with subprocess.Popen(
        words, cwd=root, stdout=log, stderr=log, env=environment, start_new_session=True
    ) as process:
        try:
            return process.wait(end - time.monotonic())
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def choose(session: Path, most: int, chance: random.Random) -> int:
    """Mark all but ``most`` mutants as skipped; returns how many are left to try."""
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    with use_db(str(session), WorkDB.Mode.open) as database:
        items = sorted(database.work_items, key=lambda item: str(item.mutations))
        real = [item for item in items
                if not item.mutations[0].operator_name.startswith(_EQUIVALENT)]  # fmt: skip
        chosen = {item.job_id for item in chance.sample(real, min(most, len(real)))}
        for item in items:
            if item.job_id not in chosen:
                database.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED))
    return len(chosen)


def results(session: Path) -> Iterator[tuple[str, bool]]:
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome

    with use_db(str(session), WorkDB.Mode.open) as database:
        for item, result in database.completed_work_items:
            if result.worker_outcome == WorkerOutcome.SKIPPED:
                continue
            one = item.mutations[0]
            place = f"{one.module_path}:{one.start_pos[0]}"
            name = one.operator_name.removeprefix("core/")
            yield f"{place} {name}", result.test_outcome == TestOutcome.KILLED


def report(rules: Iterable[Tried]) -> int:
    """Print what survived and the share that was killed; returns the exit code."""
    every = list(rules)
    mutants = [one for rule in every for one in rule.mutants]
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


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.mutants", description=__doc__)
    parser.add_argument("codes", nargs="*", default=list(SAMPLE), metavar="CODE")
    parser.add_argument("--most", type=int, default=6, help="Mutants of a rule.")
    parser.add_argument("--seed", type=int, default=0, help="Which mutants are chosen.")
    parser.add_argument("--minutes", type=float, default=15.0, help="Time for all of it.")
    parser.add_argument("--jobs", type=int, default=2, help="Rules at a time.")
    parser.add_argument("--slow", action="store_true", help="Also slow tests of other files.")
    given = parser.parse_args(words)
    end = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        checkouts: queue.Queue[Path] = queue.Queue()
        for number in range(given.jobs):
            root = Path(folder) / str(number)
            shutil.copytree(ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
            checkouts.put(root)

        def one(code: str) -> Tried:
            root = checkouts.get()
            try:
                return tried(code, given, root, end)
            finally:
                checkouts.put(root)

        with ThreadPoolExecutor(given.jobs) as pool:
            return report(pool.map(one, given.codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
