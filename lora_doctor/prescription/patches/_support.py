"""What patches share: changes of classes that are taken back in any order, and a word said once.

Several patches change one method (PEFT's constructor), and are installed and undone by several
callers. Putting back what was there before would, out of order, take out somebody else's change or
leave one's own in for ever.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

_lock = threading.RLock()
_INHERITED = object()


class Changes:
    """Methods replaced by one patch. As a context manager, all are taken back if one fails."""

    def __init__(self) -> None:
        self._layers: list[_Layer] = []

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is not None:
            self.undo()

    def around(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        """Replace the method ``name`` of ``owner`` by ``make(method)``.

        Raises:
            AttributeError: ``owner`` has no such method.
        """
        with _lock:
            self._layers.append(_Layer(owner, name, make))

    def undo(self) -> None:
        """Take everything back; twice is once."""
        with _lock:
            while self._layers:
                self._layers.pop().undo()


class _Layer:
    """One replacement. What lies under others stays in place when it is undone, without effect,
    until those are gone: they may be another library's."""

    def __init__(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        self.owner = owner
        self.name = name
        self.active = True
        below = getattr(owner, name)
        self.own = vars(owner).get(name, _INHERITED)
        replacement = make(below)

        @functools.wraps(below)
        def method(*args: Any, **kwargs: Any) -> Any:
            return (replacement if self.active else below)(*args, **kwargs)

        self.method = method
        _layers[method] = self
        setattr(owner, name, method)

    def undo(self) -> None:
        self.active = False
        layer = _layers.get(vars(self.owner).get(self.name))
        while layer is not None and not layer.active:
            del _layers[layer.method]
            if layer.own is _INHERITED:
                delattr(layer.owner, layer.name)
            else:
                setattr(layer.owner, layer.name, layer.own)
            layer = _layers.get(vars(self.owner).get(self.name))


#: The methods that are in place now. Found by identity: others may copy what is set on a function.
_layers: dict[Any, _Layer] = {}


class Once:
    """Log lines of a patch, each once until it is installed again; also in several threads."""

    def __init__(self) -> None:
        self._log = logging.getLogger("lora_doctor")
        self._logged: set[str] = set()

    def forget(self) -> None:
        with _lock:
            self._logged.clear()

    def warning(self, text: str) -> None:
        """Log the text unless it has been logged."""
        with _lock:
            if text in self._logged:
                return
            self._logged.add(text)
        self._log.warning("%s", text)
