"""The command of a dry run: chosen for a file, and refused where no guest could be in it.

Whether the interpreter at the end of a command lets a guest in is asked of the command itself: it
is run with a program that does nothing, and the guest has to answer.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_doctor.errors import InputError
from lora_doctor.guest.children import deaf_option, is_python, own_options
from lora_doctor.guest.session import Session
from lora_doctor.recipe.files.shell_syntax import SHELL_PROGRAMS

#: Seconds that a probe may take: an interpreter on a slow disk, behind a launcher.
_PROBE_SECONDS = 60
#: Programs that are no Python and start others here, in their own process tree.
_SHELLS = SHELL_PROGRAMS | {"fish", "make"}
#: Programs that start others where no guest is: on another machine, in another file system, or from
#: a process that runs already. Put in front of PATH, too, so that a shell script meets them.
ELSEWHERE = (
    "ssh", "srun", "sbatch", "salloc", "mpirun", "mpiexec", "docker", "podman", "nerdctl",
    "singularity", "apptainer", "kubectl", "ray", "sky", "modal", "bsub", "qsub",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """What is started. ``probe``: the same program with nothing to do, whose guest has to answer
    first; ``None`` for a shell, whose Python processes are watched from outside. ``programs``:
    where the launcher that was chosen for a file looks for the programs that it starts."""

    words: tuple[str, ...]
    probe: tuple[str, ...] | None
    programs: str = ""


#: What happens to a command that no guest is in, by what was asked for.
_WITHOUT = {"dry-run": "the model would be loaded as it is", "run": "no patch would be in force"}


def command_of(words: Sequence[str], asked: str = "dry-run") -> Command:
    """The command that a user gave, or the one for the file that they gave. ``asked``: the command
    of lora-doctor that it is for.

    Raises:
        InputError: there is no such program, none is known for the file, or a guest cannot be in
            it.
    """
    if len(words) == 1 and Path(words[0]).suffix in (".py", ".ipynb", ".yaml", ".yml"):
        launcher = _for_file(Path(words[0]), asked)
        if shutil.which(launcher[0]) is None:
            raise InputError(_not_installed(launcher, words[0], asked))
        chosen = _of_words(launcher, asked)
        return replace(chosen, programs=str(Path(sys.executable).parent))
    return _of_words(words, asked)


def with_programs(command: Command, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which a launcher finds its programs where its own environment was not
    activated: axolotl starts ``accelerate`` by its name."""
    path = os.pathsep.join(filter(None, (environment.get("PATH", ""), command.programs)))
    return {**environment, "PATH": path}


def _of_words(words: Sequence[str], asked: str) -> Command:
    program = shutil.which(words[0])
    if program is None:
        raise InputError(f"{asked}: no program {words[0]!r}; check the command")
    position = next((n for n, word in enumerate(words) if is_python(word)), None)
    if position is not None:
        option = deaf_option(words[position + 1 :])
        if option:
            raise InputError(
                f"{asked}: {words[position]} {option} reads no environment, so that "
                f"{_WITHOUT[asked]}; leave {option} out"
            )
        options = own_options(words[position + 1 :])
        return Command(tuple(words), (*words[: position + 1], *options, "-c", "pass"))
    if Path(program).name in _SHELLS:
        return Command(tuple(words), None)
    shebang = _shebang(Path(program))
    if shebang and is_python(_interpreter(shebang)):
        return Command(tuple(words), (*shebang, "-c", "pass"))
    if shebang and Path(_interpreter(shebang)).name in _SHELLS:
        return Command(tuple(words), None)
    raise InputError(
        f"{asked}: {words[0]} is not a Python program, and what it starts may run elsewhere; give "
        f"the Python command that it runs, such as: {asked} -- python train.py"
    )


def probe(command: Command, session: Session, environment: Mapping[str, str]) -> None:
    """Run the command's interpreter with nothing to do, and require its guest's answer.

    Raises:
        InputError: there is none: the real command would run without one.
    """
    if command.probe is None:
        return
    said = run_probe(command, environment, "dry-run")
    answers = list(session.answers.iterdir())
    if not any(session.nonce in answer.read_text(encoding="utf-8") for answer in answers):
        raise InputError(
            f"dry-run: {' '.join(command.probe[:-2])} drops the environment, so that the real "
            f"run would start; nothing was run{said}"
        )
    for answer in answers:
        answer.unlink()


def run_probe(command: Command, environment: Mapping[str, str], asked: str) -> str:
    """Run the command's interpreter with nothing to do; returns what it says, for a sentence.

    Raises:
        InputError: it cannot be run.
    """
    assert command.probe is not None
    try:
        done = subprocess.run(
            command.probe,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        shown = " ".join(command.probe[:-2])
        raise InputError(f"{asked}: {shown} cannot be run: {error}") from error
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return f" (it says: {said[-1][:300]})" if said else ""


def _shebang(program: Path) -> tuple[str, ...]:
    try:
        with open(program, "rb") as file:
            first = file.readline(1024)
            second = file.readline(1024)
    except OSError:
        return ()
    if not first.startswith(b"#!"):
        return ()
    words = first[2:].decode(errors="replace").split()
    if words and Path(words[0]).name in ("sh", "dash"):
        # pip writes this for interpreters with long paths: '''exec' /path/python "$0" "$@"
        found = re.match(r"'''exec'\s+\"?([^\"]+?)\"?\s+\"\$0\"", second.decode(errors="replace"))
        if found:
            return (found[1],)
    return tuple(words)


def _interpreter(shebang: Sequence[str]) -> str:
    """The program of a shebang, behind ``env`` where that stands first."""
    words = [word for word in shebang if not word.startswith("-") and "=" not in word]
    return words[1] if len(words) > 1 and Path(words[0]).name == "env" else words[0]


# --- files ---------------------------------------------------------------------------------------

#: By launcher, keys that its files have and others have not.
_YAML = (
    (("axolotl", "train"), ("base_model",)),
    (("llamafactory-cli", "train"), ("model_name_or_path", "finetuning_type")),
    (("llamafactory-cli", "train"), ("model_name_or_path", "stage")),
    (("swift", "rlhf"), ("model", "rlhf_type")),
    (("swift", "sft"), ("model", "tuner_type")),
    (("swift", "sft"), ("model", "train_type")),
)


def _for_file(path: Path, asked: str) -> tuple[str, ...]:
    """The command that runs a file of this content.

    Raises:
        InputError: there is no such file, or nothing tells what runs it.
    """
    if not path.is_file():
        raise InputError(f"{asked}: there is no file {str(path)!r}")
    if path.suffix == ".py":
        return (sys.executable, str(path))
    if path.suffix == ".ipynb":
        return (_beside("jupyter"), "execute", str(path))
    keys = _top_keys(path)
    for words, needed in _YAML:
        if all(key in keys for key in needed):
            return (_beside(words[0]), *words[1:], str(path))
    raise InputError(
        f"{asked}: {path} does not have the keys of a known launcher; give its command, such as: "
        f"{asked} -- trl sft --config {path}"
    )


def _not_installed(launcher: Sequence[str], file: str, asked: str) -> str:
    """That a file's own launcher is missing: a program that the user has not typed."""
    install = "pip install nbclient ipykernel" if launcher[0] == "jupyter" else "install it"
    return (
        f"{asked}: {shlex.join(launcher)!r} would run {file}, and there is no program "
        f"{launcher[0]!r} here; {install}, or give the command with the program's path. "
        f"`lora-doctor check {shlex.quote(file)}` reads the file without it"
    )


def _top_keys(path: Path) -> set[str]:
    from lora_doctor.recipe.files.bytes import read_text

    text = read_text(path).text
    return set(re.findall(r"^([A-Za-z_]\w*)\s*:", text, flags=re.MULTILINE))


def _beside(name: str) -> str:
    """A program of the environment that we run in, else the one on PATH."""
    own = Path(sys.executable).parent / name
    return str(own) if own.exists() else name
