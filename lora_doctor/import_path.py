"""What ``python -m`` puts on the import path, and takes precedence there.

Imports nothing that the interpreter has not imported itself: whatever is imported here comes from
the working directory, if that has a file of the name.
"""

import os
import sys


def drop_working_directory() -> None:
    """Take the working directory off ``sys.path`` where ``python -m`` has put it in front.

    People run us in the folder of a downloaded model, whose ``click.py`` or ``torch.py`` is
    nobody's to run. With ``python -P``, ``-I`` or ``PYTHONSAFEPATH`` it is not there in the first
    place, and what stands in front is the user's own choice (``PYTHONPATH``). A factory of the
    user's is imported from the working directory by the child process that runs it.
    """
    safe = sys.flags.isolated or getattr(sys.flags, "safe_path", False)  # since Python 3.11
    if not safe and sys.path and sys.path[0] in ("", _working_directory()):
        del sys.path[0]


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed: Python has put nothing there
        return ""
