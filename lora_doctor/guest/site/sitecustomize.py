"""Put in front of ``PYTHONPATH`` by a session of lora-doctor; Python imports it before user code.

Whatever goes wrong here ends the process: Python itself would print a failing sitecustomize and go
on, and the user's real run would start. Written for Pythons older than our own, which it may meet.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any, NoReturn

_FOLDER = os.environ.get("LORA_DOCTOR_SESSION", "")
_CARRIED = os.environ.get("LORA_DOCTOR_RUN", "")
_HERE = os.path.dirname(os.path.abspath(__file__))
_OLDEST = (3, 10)


def _stop(text: str) -> NoReturn:
    os.write(2, f"lora-doctor: {text}; nothing was run\n".encode("utf-8", "replace"))
    os._exit(97)


class _OurPackage:
    """Finds `lora_doctor` where the session was started from, and nothing else of that place."""

    root = os.path.dirname(os.path.dirname(os.path.dirname(_HERE)))

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return PathFinder.find_spec(name, [self.root]) if name == "lora_doctor" else None


def _start() -> None:
    if sys.version_info[:2] < _OLDEST:
        _stop(f"this Python is {sys.version.split()[0]}, and a guest needs 3.10")
    sys.meta_path.insert(0, _OurPackage())
    from lora_doctor.guest.start import start, start_carried

    if _FOLDER:
        start(_FOLDER)
    if _CARRIED:
        start_carried(_CARRIED)


def _chain() -> None:
    """The sitecustomize that Python would have imported without us."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if _FOLDER or _CARRIED:
    try:
        _start()
    except BaseException as error:  # noqa: BLE001 - nothing may fail open
        _stop(f"the guest did not start: {type(error).__name__}: {error}")
_chain()
