"""The process that `tests.warm` forks from: it makes its imports when first asked, and forks.

Nothing but imports may happen here: what a fork inherits is what a process of its own would have
after the same imports. Each fork becomes the process that was asked for (see `_become`) and ends as
that one does; its exit code is sent to who asked.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = str(Path(__file__).resolve().parent.parent)
#: What the command line imports sooner or later, without what is heavy or reads the environment; of
#: a package with a star, every module.
COMMAND_LINE = (
    "lora_doctor.cli.*", "lora_doctor.api", "lora_doctor.rules.*", "lora_doctor.reports.*",
    "lora_doctor.static.*", "lora_doctor.recipe.*", "lora_doctor.results.*",
    "lora_doctor.dry_run.*", "lora_doctor.prescription.write_fix", "rich.console", "rich.table",
    "jinja2", "ruamel.yaml", "packaging.requirements", "shlex", "logging",
)  # fmt: skip


def serve(settings_text: str) -> None:
    """Fork for each connection until standard input ends.

    ``settings``: "imports", names of modules; "listener", a descriptor; "others", for the command
    line: where sandboxes and scripts are forked (the fields of a `warm.Place` each); "session", for
    scripts: the folder of a session of no dry run.
    """
    settings = json.loads(settings_text)
    listener = socket.socket(fileno=settings["listener"])
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    running: dict[int, socket.socket] = {}
    imports = settings["imports"]
    session = None
    while True:
        ready = select.select([0, listener.fileno(), wake], [], [])[0]
        if 0 in ready:
            os._exit(0)
        if wake in ready:
            os.read(wake, 1 << 12)
        if listener.fileno() in ready:
            if imports:
                session = _prepare(imports, settings["session"])
                imports = ()
            connection = listener.accept()[0]
            request, descriptors = _received(connection)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setsid()  # before anybody knows of us: who ends us ends the group
                with contextlib.suppress(OSError):
                    connection.sendall(b"%d\n" % os.getpid())
                for one in (listener, connection, *running.values()):
                    one.close()
                os.close(wake)
                os.close(woken)
                _become(request, descriptors, session, settings["others"])
            for descriptor in descriptors:
                os.close(descriptor)
            running[pid] = connection
        _tell_ends(running)


def _prepare(imports: list[str], folder: str | None) -> Any:
    """Make the imports; beside a guest of the session in this folder, which is returned."""
    session = _guest(Path(folder)) if folder else None
    _import(imports)
    if session is not None:
        _nothing_told(session)
    return session


def _import(names: list[str]) -> None:
    path = list(sys.path)
    sys.path.insert(0, ROOT)
    for name in names:
        with contextlib.suppress(Exception):  # it fails again where it is needed, and is told
            package = importlib.import_module(name.removesuffix(".*"))
            if name.endswith(".*"):
                for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                    importlib.import_module(module.name)
    sys.path[:] = path
    gc.collect()
    gc.freeze()  # the collector then leaves the pages of the libraries shared between the forks


def _guest(folder: Path) -> Any:
    """Be a guest of the session in this folder, as `lora_doctor.guest.start` makes one; what it
    answers, and to whom, is left to the forks (see `_run_script`)."""
    sys.path.insert(0, ROOT)
    acts = importlib.import_module("lora_doctor.dry_run.acts")
    children = importlib.import_module("lora_doctor.guest.children")
    session = importlib.import_module("lora_doctor.guest.session").Session.read(folder)
    del sys.path[0]
    acts.install(session)
    children.watch_children(session)
    return session


def _nothing_told(session: Any) -> None:
    """End this process where the imports alone have told something, or have read which folders a
    dry run has: forks would lack it. Scripts are then started as always."""
    told = [path.read_text(encoding="utf-8") for path in session.records.iterdir()]
    read = [name for name in ("datasets", "matplotlib", "wandb", "mlflow") if name in sys.modules]
    if told or read:
        raise RuntimeError(f"no script can be forked here: told {told}, imported {read}")


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    text = b""
    while chunk := connection.recv(1 << 16):
        text += chunk
    return json.loads(text), descriptors


def _tell_ends(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = running.pop(pid)
        with contextlib.suppress(OSError):  # nobody waits any more
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        connection.close()


def _become(
    request: Mapping[str, Any], descriptors: list[int], session: Any, others: Mapping[str, Any]
) -> NoReturn:
    """Be the process that was asked for.

    request: "env", "cwd", and one of "script" (see `_run_script`), "setup", for
    `sandbox.child.main`, and "arguments" of the command line. descriptors: its standard input,
    output and error.
    """
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    tempfile.tempdir = None  # the folder of this process, where one was looked for
    if "script" in request:
        _run_script(request["script"], session)
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*filter(None, places), *sys.path]
    if "setup" in request:
        sys.argv[:] = ["-c", ROOT, request["setup"]]
        importlib.import_module("lora_doctor.sandbox.child").main(request["setup"])
        raise SystemExit(0)
    warm = importlib.import_module("tests.warm")
    warm.fork_sandboxes(warm.Place(**others["sandbox"]))
    warm.fork_scripts(warm.Place(**others["script"]))
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    sys.argv[:] = ["lora_doctor", *request["arguments"]]
    runpy.run_module("lora_doctor", run_name="__main__", alter_sys=True)
    raise SystemExit(0)


def _run_script(words: list[str], session: Any) -> NoReturn:
    """Run a script as ``python SCRIPT`` does where the guest of its session is in place.

    words: the command. session: that of no dry run, which becomes the one of the environment.
    """
    start = importlib.import_module("lora_doctor.guest.start")
    itself = importlib.import_module("lora_doctor.guest.session")
    own = type(session).read(Path(os.environ[itself.VARIABLE]))
    vars(session).update(vars(own))  # acts hold on to the session, and ask it when they act
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    script = words[1]
    sys.path[:] = [
        str(Path(script).resolve().parent),
        *(one for one in places if one and one != str(itself.SITE)),
        *sys.path,
    ]
    sys.argv[:] = words[1:]
    sys.orig_argv[:] = words
    start.answer(session)
    os.register_at_fork(after_in_child=lambda: start.answer(session))
    module = ModuleType("__main__")
    module.__file__ = script
    module.__loader__ = SourceFileLoader("__main__", script)
    vars(module).update(__builtins__=builtins, __cached__=None)
    if "__annotations__" in vars(sys.modules["__main__"]):  # not in younger Pythons
        module.__annotations__ = {}
    sys.modules["__main__"] = module
    try:
        exec(compile(Path(script).read_bytes(), script, "exec", dont_inherit=True), vars(module))
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - shown as Python shows it
        # Without the frame that is ours.
        trace = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        raise SystemExit(1) from None
    raise SystemExit(0)
