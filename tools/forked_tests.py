"""Runs of tests, each in a fork of one process that has made the imports: for `tools.mutants`.

`python -m tools.forked_tests CODE ...`, in a copy of the checkout: the file of each rule is changed
there. A run of pytest of its own takes 15 s to import torch, transformers, PEFT and all rules
before the first test, here half a second: only the rules with these codes and the files of tests
are imported in each fork, and so as they are then. One line of JSON for each mutant on standard
output; what the tests print goes to standard error.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.metadata
import itertools
import json
import os
import pkgutil
import random
import select
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools import mutants

#: Changes that change nothing: annotations are never evaluated (`str | None` can be any other
#: operation), and for `None`, enumerations and short strings `is` and `==` are the same.
_EQUIVALENT = (
    "core/ReplaceBinaryOperator_BitOr_",
    *(f"core/ReplaceComparisonOperator_{one}"
      for one in ("Eq_Is", "Is_Eq", "NotEq_IsNot", "IsNot_NotEq")),
)  # fmt: skip
_PYTEST = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider")
_HEAVY = (
    "torch",
    "transformers",
    "peft",
    "peft.tuners.lora",
    "pytest",
    "_pytest.assertion.rewrite",
)
#: Seconds that are added to each change of a file: Python takes compiled code of the same second
#: and length for that of the changed file.
_seconds = itertools.count(1)


@dataclass(frozen=True)
class Mutant:
    """One change of a file: which line it is in, what is changed, and the text that it gives."""

    line: int
    name: str
    text: str

    def told(self, before: str) -> str:
        """The changed lines, as they were and as they are."""
        old, new = before.splitlines(), self.text.splitlines()
        was = [line.strip() for line in old if line not in new]
        now = [line.strip() for line in new if line not in old]
        return f"{' '.join(was)} -> {' '.join(now)}"


def _left_alone(text: str) -> set[int]:
    """Lines whose change says nothing of the tests: imports for annotations are not run, and the
    examples of a rule are themselves tests."""
    nodes = list(ast.walk(ast.parse(text)))
    imports = [one for one in nodes if isinstance(one, ast.If)
               and ast.unparse(one.test) == "TYPE_CHECKING"]  # fmt: skip
    examples = [one for one in nodes if isinstance(one, ast.Assign)
                and ast.unparse(one.targets[0]) == "examples"]  # fmt: skip
    found = [range(one.lineno, (one.end_lineno or one.lineno) + 1) for one in imports + examples]
    return {line for lines in found for line in lines}


def mutants_of(text: str) -> Iterator[Mutant]:
    """All changes of a rule's module that cosmic-ray knows and that may change what it says."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    tree, left_alone = get_ast(text), _left_alone(text)
    for name in sorted(operator_names()):
        operator = get_operator(name)
        is_equivalent = name in _EQUIVALENT or name.startswith(_EQUIVALENT[0])
        if operator.arguments() or is_equivalent:
            continue
        places = [start for node in ast_nodes(tree)
                  for start, _ in operator().mutation_positions(node)]  # fmt: skip
        for number, start in enumerate(places):
            changed = mutate_code(text, operator(), number)
            if changed not in (None, text) and start[0] not in left_alone:
                yield Mutant(start[0], name.removeprefix("core/"), changed)


def import_all_but(codes: Iterable[str]) -> None:
    """Import what tests of rules import, and the rules, without those of these codes."""
    import lora_doctor
    import lora_doctor.rules

    for name in _HEAVY:
        importlib.import_module(name)
    for plugin in importlib.metadata.entry_points(group="pytest11"):
        plugin.load()
    left_out = tuple(f"lora_doctor.rules.{code.lower()}_" for code in codes)
    for module in pkgutil.walk_packages(lora_doctor.__path__, "lora_doctor."):
        if not module.name.startswith(left_out) and not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # of a package that is not installed
                importlib.import_module(module.name)


@contextlib.contextmanager
def warm_processes() -> Iterator[None]:
    """Sandboxes and scripts of the tests are forked from processes that all runs share; the command
    line, which imports the rules, is not."""
    from tests import warm

    with warm.warm_processes():
        if warm.current is not None:
            warm.current.sandbox()
            warm.current.script()
        yield


def _be_tests(commands: Sequence[str], log: int) -> int:
    """Run the tests in this process; exit code 0 where all passed."""
    from tests import warm
    from tests.warm_server import COMMAND_LINE

    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    vars(warm)["warm_processes"] = contextlib.nullcontext  # they are there
    if warm.current is not None:
        warm.current._command_line = warm.Server(COMMAND_LINE, os.environ)
    import pytest

    for words in commands:
        code = pytest.main([*_PYTEST, *shlex.split(words)])
        if code:
            return int(code)
    return 0


def run_tests(commands: Sequence[str], timeout: float, log: int = 2) -> int:
    """Exit code of the tests in a fork; -9 where they take longer than ``timeout`` seconds."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = _be_tests(commands, log)
        os._exit(code)
    end = os.pidfd_open(pid)
    try:
        select.select([end], [], [], max(0.0, timeout))
    finally:
        os.close(end)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write(path: Path, text: str) -> None:
    """Write a module so that no compiled code of an earlier text is taken for it."""
    path.write_text(text, encoding="utf-8")
    later = time.time() + next(_seconds)
    os.utime(path, (later, later))


def tell(**values: object) -> None:
    print(json.dumps(values), file=sys.__stdout__, flush=True)


def try_rule(code: str, given: argparse.Namespace, root: Path) -> None:
    """Tell what becomes of the mutants of one rule, until `given.end`."""
    commands = mutants.test_commands(code, root, slow=given.slow, quick=given.quick)
    begun = time.monotonic()
    if run_tests(commands, given.end - time.time()):
        late = time.time() >= given.end
        why = "no time was left" if late else f"its tests fail as it is: {commands}"
        return tell(code=code, why=why)
    # A mutant that loops is seen by the time that it takes.
    timeout = 30 + 3 * (time.monotonic() - begun)
    path = root / mutants.rule_file(code, root)
    text = path.read_text(encoding="utf-8")
    every = list(mutants_of(text))
    chosen = random.Random(f"{code} {given.seed}").sample(every, min(given.most, len(every)))
    try:
        for number, mutant in enumerate(chosen):
            if time.time() >= given.end:
                return tell(code=code, left=len(chosen) - number)
            write(path, mutant.text)
            killed = run_tests(commands, timeout) != 0
            place = f"{path.relative_to(root)}:{mutant.line} {mutant.name}"
            tell(code=code, place=place, change=mutant.told(text), killed=killed)
    finally:
        write(path, text)


def main(words: list[str]) -> int:
    given = mutants.options(__doc__).parse_args(words)
    given.end = time.time() + 60 * given.minutes
    with os.fdopen(os.dup(1), "w") as results:
        sys.__stdout__ = results  # type: ignore[misc]
        os.dup2(2, 1)
        import_all_but(given.codes)
        with warm_processes():
            for code in given.codes:
                try_rule(code, given, Path.cwd())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
