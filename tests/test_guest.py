"""The guest in a process of the user's: what it holds on to, and that it can be taken back."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lora_doctor.dry_run.acts import garbage
from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.dry_run.captured import Captured
from lora_doctor.dry_run.command import command_of
from lora_doctor.errors import InputError
from lora_doctor.guest import call_sites
from lora_doctor.guest.children import deaf_option, is_python, own_options
from lora_doctor.guest.import_hooks import ImportHooks
from lora_doctor.guest.journal import Journal
from lora_doctor.guest.replacing import GuestError, Replacements
from lora_doctor.guest.session import SITE, VARIABLE, Session

# --- import hooks ---------------------------------------------------------------------------------


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImportHooks]:
    """Hooks, and a module `library_of_a_user` that nobody has imported."""
    (tmp_path / "library_of_a_user.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = ImportHooks()
    made.install()
    yield made
    made.remove()
    sys.modules.pop("library_of_a_user", None)


def test_an_act_follows_the_import_and_causes_none(hooks: ImportHooks) -> None:
    seen: list[int] = []
    hooks.after("library_of_a_user", lambda module: seen.append(module.value))
    assert not seen and "library_of_a_user" not in sys.modules
    module = importlib.import_module("library_of_a_user")
    assert seen == [1]
    assert module.__spec__ is not None and module.__loader__ is module.__spec__.loader
    assert type(module.__loader__).__name__ == "SourceFileLoader", "the module's own loader"


def test_what_is_imported_already_is_acted_on_at_once(hooks: ImportHooks) -> None:
    importlib.import_module("library_of_a_user")
    seen: list[ModuleType] = []
    hooks.after("library_of_a_user", seen.append)
    assert seen == [sys.modules["library_of_a_user"]]


def test_hooks_that_are_removed_act_no_more(hooks: ImportHooks) -> None:
    seen: list[ModuleType] = []
    hooks.after("library_of_a_user", seen.append)
    hooks.remove()
    importlib.import_module("library_of_a_user")
    assert not seen


def test_a_module_is_executed_within_its_context(hooks: ImportHooks) -> None:
    order: list[str] = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        order.append("before")
        yield
        order.append("after")

    hooks.within("library_of_a_user", around)
    hooks.after("library_of_a_user", lambda module: order.append("acted"))
    assert importlib.import_module("library_of_a_user").value == 1
    assert order == ["before", "after", "acted"]


# --- replacing ------------------------------------------------------------------------------------


class _Library:
    def method(self, number: int) -> int:
        return number

    @classmethod
    def of_class(cls, number: int) -> tuple[str, int]:
        return cls.__name__, number

    @staticmethod
    def static(number: int) -> int:
        return number


class _Heir(_Library):
    pass


def test_methods_of_each_kind_are_replaced_and_put_back() -> None:
    before = dict(vars(_Library))
    replaced = Replacements()
    replaced.around(_Library, "method", lambda original, one, number: original(one, number + 1))
    replaced.around(_Library, "static", lambda original, number: original(number + 2))
    replaced.around(_Library, "of_class", lambda original, cls, number: original(number + 3))
    assert (_Heir().method(0), _Heir.static(0), _Heir.of_class(0)) == (1, 2, ("_Heir", 3))
    replaced.undo()
    assert dict(vars(_Library)) == before


def test_what_a_library_no_longer_has_is_an_error() -> None:
    with pytest.raises(GuestError, match="_Library has no gone"):
        Replacements().around(_Library, "gone", lambda original: original())


# --- command lines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "own", "deaf"),
    [
        (["train.py", "-I"], [], None),
        (["-I", "train.py"], ["-I"], "-I"),
        (["-uBE", "train.py"], ["-uBE"], "-E"),
        (["-m", "trl", "-I"], [], None),
        (["-um", "trl", "-I"], ["-u"], None),
        (["-c", "pass", "-S"], [], None),
        (["-X", "dev", "-S", "train.py"], ["-X", "dev", "-S"], "-S"),
        (["-W", "ignore::SyntaxWarning:I", "train.py"], ["-W", "ignore::SyntaxWarning:I"], None),
        (["-Xfrozen_modules=off", "train.py"], ["-Xfrozen_modules=off"], None),
        (["--", "-I"], [], None),
    ],
)
def test_options_of_the_interpreter_are_told_from_those_of_the_script(
    words: list[str], own: list[str], deaf: str | None
) -> None:
    assert own_options(words) == own
    assert deaf_option(words) == deaf


@pytest.mark.parametrize("name", ["python", "/usr/bin/python3", "python3.12", "python.exe"])
def test_names_of_interpreters(name: str) -> None:
    assert is_python(name)


@pytest.mark.parametrize("name", ["python.sh", "mypython", "ipython", "pythonic", ""])
def test_names_that_are_none(name: str) -> None:
    assert not is_python(name)


def test_an_environment_reaches_only_its_own_session(tmp_path: Path) -> None:
    session = Session(tmp_path, "nonce")
    environment = session.environment({"PYTHONPATH": "/mine", "HOME": "/home"})
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(SITE), "/mine"]
    assert session.reaches(environment)
    assert not Session(tmp_path / "other", "nonce").reaches(environment)
    for lost in (VARIABLE, "PYTHONPATH"):
        assert not session.reaches({k: v for k, v in environment.items() if k != lost})


def test_records_survive_a_half_written_line(tmp_path: Path) -> None:
    session = Session(tmp_path, "nonce")
    session.write()
    Journal(session).tell("model", name="one")
    [path] = session.records.iterdir()
    path.write_text(path.read_text() + '{"kind": "mod')
    assert [record["name"] for record in Captured.read(session.records).records] == ["one"]


# --- whose line -----------------------------------------------------------------------------------


def test_files_of_libraries_are_not_the_users(tmp_path: Path) -> None:
    assert call_sites.is_of_user(str(tmp_path / "train.py"))
    assert call_sites.is_of_user("train.py")
    for other in (json.__file__, pytest.__file__, call_sites.__file__, "<string>", ""):
        assert not call_sites.is_of_user(other), other


# --- files ----------------------------------------------------------------------------------------


def launched(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The words of the command for a file of this content, on a machine that has every launcher."""
    path.write_text(text)
    tools = path.parent / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("axolotl", "llamafactory-cli", "jupyter"):
        (tools / name).write_text(f"#!{sys.executable}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tools / "python"))
    (tools / "python").write_text("#!/bin/sh\n")
    (tools / "python").chmod(0o755)
    return command_of([str(path)]).words


@pytest.mark.skipif(os.name != "posix", reason="programs by their first line")
@pytest.mark.parametrize(
    ("name", "text", "launcher"),
    [
        ("qlora.yml", "base_model: org/model\nadapter: qlora\n", ("axolotl", "train")),
        (
            "sft.yaml",
            "### model\nmodel_name_or_path: org/model\nstage: sft\n",
            ("llamafactory-cli", "train"),
        ),
        ("train.ipynb", "{}", ("jupyter", "execute")),
        ("train.py", "", ("python",)),
    ],
)
def test_the_command_of_a_file_is_chosen_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, launcher: Any
) -> None:
    first, *rest = launched(tmp_path / name, text, monkeypatch)
    assert (Path(first).name, *rest) == (*launcher, str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text", "program"),
    [("qlora.yml", "base_model: org/model\n", "axolotl"), ("tune.ipynb", "{}", "jupyter")],
)
def test_a_launcher_that_is_not_installed_is_told_with_what_reads_the_file_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, program: str
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError) as told:
        command_of([str(tmp_path / name)])
    assert f"no program '{program}' here" in str(told.value)
    assert f"lora-doctor check {tmp_path / name}" in str(told.value)


def test_a_file_of_no_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="the keys of a known launcher"):
        launched(tmp_path / "some.yaml", "compute_environment: LOCAL_MACHINE\n", monkeypatch)


def test_garbage_is_looked_for_as_usual_once_a_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a forward leaves is large in memory; what the command has set itself stays."""
    monkeypatch.setattr("atexit.register", lambda call: call)
    usual = gc.get_threshold()
    found = []
    try:
        for own in (None, (900, 5, 5)):
            acting = Acting(Session(tmp_path, ""))
            garbage.prepare(acting)
            found.append(gc.get_threshold()[0] > usual[0])
            if own is not None:
                gc.set_threshold(*own)
            acting.trains(acting)
            found.append(gc.get_threshold() == (own or usual))
            gc.set_threshold(*usual)
    finally:
        gc.set_threshold(*usual)
    assert found == [True, True, True, True]


_ENDS = """
import sys
from pathlib import Path
from lora_doctor.dry_run.acts import acting, garbage
from lora_doctor.guest.session import Session

garbage.prepare(acting.Acting(Session(Path(sys.argv[1]), "")))
class Log:
    def __init__(self):
        self.file, self.own = open(sys.argv[2], "w"), self
        self.file.write("the last line")
Log()
sys.exit(3)
"""


def test_a_process_ends_with_its_code_and_its_files_written(tmp_path: Path) -> None:
    """Without the search for garbage nobody would close a file that is part of a cycle."""
    log = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", _ENDS, str(tmp_path), str(log)], check=False)
    assert (done.returncode, log.read_text()) == (3, "the last line")
