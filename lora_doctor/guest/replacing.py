"""Attributes of libraries, replaced in a way that can be taken back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Around = Callable[..., Any]


class Replacements:
    """What was replaced in this process, newest last."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def around(self, owner: Any, name: str, call: Around) -> None:
        """Replace a function or method by one that calls ``call(original, *arguments, **named)``.

        For a method the first argument is the object; for a class method the class.

        Raises:
            GuestError: there is no such attribute, or it is nothing that can be called.
        """
        held = vars(owner).get(name)
        if held is None:
            raise GuestError(f"{_name(owner)} has no {name}")
        if isinstance(held, classmethod):
            self._class_method(owner, name, held, call)
            return
        original = held.__func__ if isinstance(held, staticmethod) else held
        if not callable(original):
            raise GuestError(f"{_name(owner)}.{name} cannot be called")

        @functools.wraps(original)
        def replaced(*arguments: Any, **named: Any) -> Any:
            return call(original, *arguments, **named)

        new = staticmethod(replaced) if isinstance(held, staticmethod) else replaced
        self.put(owner, name, new)

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute that is there already, until :meth:`undo`."""
        old = vars(owner)[name]
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, old))

    def add(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute that is not there, until :meth:`undo`."""
        setattr(owner, name, value)
        self._undo.append(lambda: delattr(owner, name))

    def undo(self) -> None:
        """Put everything back, the newest first."""
        while self._undo:
            self._undo.pop()()

    def _class_method(self, owner: Any, name: str, held: Any, call: Around) -> None:
        function = held.__func__

        @functools.wraps(function)
        def replaced(cls: Any, *arguments: Any, **named: Any) -> Any:
            return call(functools.partial(function, cls), cls, *arguments, **named)

        self.put(owner, name, classmethod(replaced))


class GuestError(Exception):
    """A library no longer has what the guest holds on to."""


def _name(owner: Any) -> str:
    return str(getattr(owner, "__qualname__", None) or getattr(owner, "__name__", owner))
