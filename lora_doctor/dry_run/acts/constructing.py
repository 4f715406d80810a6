"""Models that are made by calling their class with a config: the same class, of the shrunk config.

Every model class of a library is met when it is defined, which is after its base class is there.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.guest.call_sites import is_of_user

#: Makes a model: the original constructor, the model, its config, and what else was given.
Made = Callable[[Callable[..., None], Any, Any, tuple[Any, ...], dict[str, Any]], None]


def watch(acting: Acting, base: type, made: Made) -> None:
    """Have each subclass of ``base`` that is defined from now on made by ``made``, where it is
    constructed by itself and not as a part of another model."""

    def met(subclass: type) -> None:
        if "__init__" in vars(subclass) and is_of_library(subclass):
            acting.replaced.put(
                subclass, "__init__", _around(vars(subclass)["__init__"], base, made)
            )

    if "__init_subclass__" in vars(base):

        def defined(original: Any, subclass: type, **named: Any) -> None:
            original(**named)
            met(subclass)

        acting.replaced.around(base, "__init_subclass__", defined)
        return

    def first_defined(subclass: type, /, **named: Any) -> None:
        super(base, subclass).__init_subclass__(**named)  # type: ignore[arg-type]
        met(subclass)

    acting.replaced.add(base, "__init_subclass__", classmethod(first_defined))


def _around(original: Any, base: type, made: Made) -> Any:
    @functools.wraps(original)
    def construct(model: Any, *arguments: Any, **named: Any) -> None:
        # Older releases have classes that call the constructor of their base by its name.
        config = arguments[0] if arguments else named.get("config")
        if not hasattr(config, "to_json_string") or inside_a_model(base):
            original(model, *arguments, **named)
            return
        rest = {key: value for key, value in named.items() if key != "config"}
        made(original, model, config, arguments[1:], rest)

    return construct


def inside_a_model(base: type) -> bool:
    """Whether a model of a library is being constructed that makes this one as a part of itself."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "__init__":
            owner = frame.f_locals.get("self")
            if isinstance(owner, base) and is_of_library(type(owner)):
                return True
        frame = frame.f_back
    return False


def is_of_library(kind: type) -> bool:
    """Whether a class is none of the user's own; code of a model's repository is none."""
    if kind.__module__.startswith("transformers_modules."):
        return True
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is not None and not is_of_user(file)
