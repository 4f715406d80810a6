"""The process that `tests.warm` forks from: it makes its imports when first asked, and forks.

Nothing but imports may happen here: what a fork inherits is what a process of its own would have
after the same imports. Each fork becomes the process that was asked for (see `_become`) and ends as
that one does; its exit code is sent to who asked.
"""

from __future__ import annotations

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
from pathlib import Path
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

    ``settings``: "imports", names of modules; "listener", a descriptor; "sandbox", for the command
    line: where sandboxes are forked (the fields of `warm.Place`).
    """
    settings = json.loads(settings_text)
    listener = socket.socket(fileno=settings["listener"])
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    running: dict[int, socket.socket] = {}
    imports = settings["imports"]
    while True:
        ready = select.select([0, listener.fileno(), wake], [], [])[0]
        if 0 in ready:
            os._exit(0)
        if wake in ready:
            os.read(wake, 1 << 12)
        if listener.fileno() in ready:
            if imports:
                _import(imports)
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
                _become(request, descriptors, settings)
            for descriptor in descriptors:
                os.close(descriptor)
            running[pid] = connection
        _tell_ends(running)


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
    request: Mapping[str, Any], descriptors: list[int], settings: Mapping[str, Any]
) -> NoReturn:
    """Be the process that was asked for.

    request: "env", "cwd", and "setup", for `sandbox.child.main`, or "arguments" of the command
    line. descriptors: its standard input, output and error.
    """
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    tempfile.tempdir = None  # the folder of this process, where one was looked for
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*filter(None, places), *sys.path]
    if "setup" in request:
        sys.argv[:] = ["-c", ROOT, request["setup"]]
        importlib.import_module("lora_doctor.sandbox.child").main(request["setup"])
        raise SystemExit(0)
    warm = importlib.import_module("tests.warm")
    warm.fork_sandboxes(warm.Place(**settings["sandbox"]))
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    sys.argv[:] = ["lora_doctor", *request["arguments"]]
    runpy.run_module("lora_doctor", run_name="__main__", alter_sys=True)
    raise SystemExit(0)
