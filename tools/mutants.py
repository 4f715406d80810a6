"""Whether the tests notice when a rule is changed: `python -m tools.mutants [CODE ...]`.

cosmic-ray changes one operator, number or constant at a time in the file of a rule (a *mutant*) and
runs the tests of that rule: its own examples, with what its page quotes of them, and the test files
that name its code. A mutant that no test notices has survived. The work is done in a copy of the
checkout, so that no file of yours is changed.

Exit code 1 where fewer than 85 % of the mutants were killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Killed mutants of all, at least.
GOAL = 0.85
#: Without CODE: rules of several depths and topics, in which a sentence or a piece of evidence is
#: chosen by a condition.
SAMPLE = ("LD104", "LD303", "LD402", "LD407", "LD504", "LD505", "LD601", "LD604")
#: Annotations are never evaluated: `str | None` can be any other operation.
_EQUIVALENT = ("core/ReplaceBinaryOperator_BitOr_",)
_LEFT_OUT = (".git", ".venv*", ".nox", ".mypy_cache", ".ruff_cache", "__pycache__", "*.egg-info")
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


def test_command(code: str, root: Path, *, examples_only: bool) -> str:
    """The rule's own examples first; then, where these pass, the test files that name it."""
    pytest = f"{shlex.quote(sys.executable)} -m pytest -x -q -n 0 -p no:cacheprovider"
    commands = [f"{pytest} tests/test_rules.py -k {code}"]
    naming = [
        str(path.relative_to(root))
        for path in sorted((root / "tests").glob("test_*.py"))
        if path.name != "test_rules.py" and code in path.read_text(encoding="utf-8")
    ]
    if naming and not examples_only:
        commands.append(f"{pytest} {' '.join(naming)}")
    return shlex.join(["sh", "-c", " && ".join(commands)])


def mutants(
    code: str, tests: str, chosen: argparse.Namespace, root: Path
) -> Iterator[tuple[str, bool]]:
    """Each mutant that was tried, as ``file:line operator``, and whether a test noticed it.

    Raises:
        CalledProcessError: cosmic-ray itself fails.
        SystemExit: the tests fail without a mutant, so that every one would count as killed.
    """
    module = rule_file(code, root)
    if subprocess.run(shlex.split(tests), cwd=root).returncode:
        raise SystemExit(f"tools.mutants: {code}: its tests fail as it is; mend them first")
    config, session = root / f"{code}.toml", root / f"{code}.sqlite"
    config.write_text(_CONFIG.format(
        module=json.dumps(str(module)), timeout=chosen.timeout,
        command=json.dumps(tests)), encoding="utf-8")  # fmt: skip
    cosmic_ray("init", str(config), str(session), root=root)
    choose(session, chosen.most, random.Random(f"{code} {chosen.seed}"))
    cosmic_ray("exec", str(config), str(session), root=root)
    yield from results(session)


def cosmic_ray(*words: str, root: Path) -> None:
    subprocess.run([sys.executable, "-m", "cosmic_ray.cli", *words], cwd=root, check=True)


def choose(session: Path, most: int, chance: random.Random) -> None:
    """Mark all but ``most`` mutants as skipped."""
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


def report(found: Iterable[tuple[str, bool]]) -> int:
    """Print what survived and the share that was killed; returns the exit code."""
    tried = list(found)
    survived = [place for place, is_killed in tried if not is_killed]
    for place in survived:
        print(f"survived  {place}")
    killed = len(tried) - len(survived)
    share = killed / len(tried) if tried else 0.0
    print(f"{killed} of {len(tried)} mutants killed ({share:.0%}, goal {GOAL:.0%})")
    return 0 if share >= GOAL else 1


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.mutants", description=__doc__)
    parser.add_argument("codes", nargs="*", default=list(SAMPLE), metavar="CODE")
    parser.add_argument("--most", type=int, default=12, help="Mutants of a rule.")
    parser.add_argument("--seed", type=int, default=0, help="Which mutants are chosen.")
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="Seconds for the tests of one."
    )
    parser.add_argument("--examples-only", action="store_true", help="No other test files.")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        root = Path(folder) / "checkout"
        shutil.copytree(ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        # Before whatever is installed, also in the processes that the tests start.
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(root), os.environ.get("PYTHONPATH")))
        )
        return report(
            one
            for code in given.codes
            for one in mutants(
                code, test_command(code, root, examples_only=given.examples_only), given, root
            )
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
