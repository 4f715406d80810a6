"""A command with the patches of a prescription in force: prepared, and then in our place.

The command replaces this process, so that its exit code, signals, terminal and job control are its
own, and nothing of ours has to pass them on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.dry_run.command import Command, command_of, run_probe, with_programs
from lora_doctor.errors import InputError
from lora_doctor.guest.carried import Carried
from lora_doctor.prescription.apply import checked_prescription
from lora_doctor.prescription.write_fix import PRESCRIPTION_NAME
from lora_doctor.real_run import patched, watch
from lora_doctor.recipe.files.prescription import Prescription
from lora_doctor.sandbox.temporary import temporary_folder

#: Signals that Python ignores and other programs do not; ignored ones stay ignored in what follows.
_OF_PYTHON = ("SIGPIPE", "SIGXFZ", "SIGXFSZ")


@dataclass(frozen=True)
class RealRun:
    """What will be started. ``patches``: names of those that will be in force."""

    command: Command
    session: Carried
    environment: Mapping[str, str]
    patches: tuple[str, ...]


def prepare(words: Sequence[str], prescription: str | None) -> RealRun:
    """The command with its environment; its interpreter has answered, where it has one.

    Args:
        prescription: the file; ``None``: the one that ``fix --apply`` has written here.

    Raises:
        InputError: it is no prescription, it was made for other versions than those that the
            command would run with, or no guest can be in the command.
    """
    held = _prescription(prescription)
    command = command_of(words, "run")
    patches = [patch.to_json() for patch in held.patches]
    options = {"patches": patches, "versions": dict(held.versions)}
    session = Carried((patched.INSTALL,), options)
    outer = with_programs(command, os.environ) if command.programs else dict(os.environ)
    if command.probe is not None:
        _ask(command, held, outer)
    names = tuple(patch.name for patch in held.patches)
    return RealRun(command, session, session.environment(outer) if names else outer, names)


def _prescription(given: str | None) -> Prescription:
    if given is None and not Path(PRESCRIPTION_NAME).exists():
        raise InputError(
            f"run: there is no {PRESCRIPTION_NAME} here, which fix --apply writes; give "
            "--prescription FILE"
        )
    return checked_prescription(given or PRESCRIPTION_NAME)


def _ask(command: Command, held: Prescription, outer: Mapping[str, str]) -> None:
    """Run the command's interpreter with nothing to do: a guest has to answer, and the versions
    have to be those of the prescription.

    Raises:
        InputError: they are not, or none answers.
    """
    assert command.probe is not None
    with temporary_folder() as folder:
        file, nonce = Path(folder, "answer"), os.urandom(16).hex()
        options = {"answer": str(file), "nonce": nonce, "versions": dict(held.versions)}
        asking = Carried((patched.ANSWER,), options)
        said = run_probe(command, asking.environment(outer), "run")
        answer = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    shown = " ".join(command.probe[:-2])
    if answer.get("nonce") != nonce:
        raise InputError(
            f"run: {shown} drops the environment, so that no patch would be applied; nothing was "
            f"run{said}"
        )
    other = patched.other_versions(held.versions, answer["versions"])
    if other:
        raise InputError(
            f"run: the prescription was made for {other} for {shown}; make it anew here with "
            "lora-doctor fix --apply, or install those versions; nothing was run"
        )


def replace_this_process(run: RealRun) -> int:
    """Become the command. Returns only where a system cannot do that: its exit code then.

    Raises:
        InputError: it cannot be started.
    """
    words, environment = run.command.words, dict(run.environment)
    if os.name != "posix":
        return start_and_wait(run)
    sys.stdout.flush()
    sys.stderr.flush()
    if run.patches:
        watch.start(run.session)
    for name in _OF_PYTHON:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(words[0], words, environment)
    except OSError as error:
        raise InputError(f"run: {words[0]} cannot be started: {error}") from error


def start_and_wait(run: RealRun) -> int:
    """Run the command beside this process; returns its exit code, 128 + n for a signal."""
    try:
        code = subprocess.run(run.command.words, env=dict(run.environment), check=False).returncode
    except OSError as error:
        raise InputError(f"run: {run.command.words[0]} cannot be started: {error}") from error
    return code if code >= 0 else 128 - code
