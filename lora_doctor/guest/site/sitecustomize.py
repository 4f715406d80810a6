"""Put in front of ``PYTHONPATH`` by a session of lora-doctor; Python imports it before user code.

Whatever goes wrong here ends the process: Python itself would print a failing sitecustomize and go
on, and the user's real run would start. Written for any Python 3, which it may well meet.
"""

import os
import sys

_FOLDER = os.environ.get("LORA_DOCTOR_SESSION")
_HERE = os.path.dirname(os.path.abspath(__file__))


def _stop(text):
    os.write(2, ("lora-doctor: %s; nothing was run\n" % text).encode("utf-8", "replace"))
    os._exit(97)


class _OurPackage(object):
    """Finds `lora_doctor` where the session was started from, and nothing else of that place."""

    def __init__(self, root):
        self.root = root

    def find_spec(self, name, path=None, target=None):
        if name != "lora_doctor":
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [self.root])


def _start():
    if sys.version_info < (3, 10):
        _stop("this Python is %d.%d, and a guest needs 3.10" % sys.version_info[:2])
    finder = _OurPackage(os.path.dirname(os.path.dirname(os.path.dirname(_HERE))))
    sys.meta_path.insert(0, finder)
    from lora_doctor.guest.start import start

    start(_FOLDER)


def _chain():
    """The sitecustomize that Python would have imported without us."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if _FOLDER:
    try:
        _start()
    except BaseException as error:
        _stop("the guest did not start: %s: %s" % (type(error).__name__, error))
_chain()
