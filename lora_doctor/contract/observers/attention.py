"""Attention: what the model's own code says against the implementation that it runs with, and
what that implementation leaves out.

Both are seen in the first training forward. Some models warn there. Others hand their attention
function a number that only some implementations know (the cap of Gemma 2's scores): the others
take it among ``**kwargs`` and do without.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from lora_doctor.contract.observers.base import Observer
from lora_doctor.results.observations import AttentionReading
from lora_doctor.text import clean_path

#: What a message says when it is about the implementation, and when the model has dealt with it.
_ABOUT = re.compile(r"attn_implementation|attention implementation", re.IGNORECASE)
_DEALT_WITH = re.compile(r"fall(s|ing)? ?back", re.IGNORECASE)


class Attention(Observer):
    """Fills ``Observations.attention``."""

    field: ClassVar[str] = "attention"

    def __init__(self, setting: Any) -> None:
        super().__init__(setting)
        self._model: Any = None
        self._messages: dict[tuple[str, str], None] = {}
        self._dropped: dict[str, AttentionReading] = {}

    def watch_training(self, model: Any) -> Iterable[Any]:
        self._model = model
        yield _Listening(self._hear)
        yield _Wrapping(self._look)

    def _hear(self, logger: str, text: str) -> None:
        if _ABOUT.search(text) and not _DEALT_WITH.search(text):
            self._messages[logger, text] = None

    def _look(self, name: str, function: Any, module: Any, given: dict[str, Any]) -> None:
        """One call of an attention function: what the model's own function takes by name and
        this one does not."""
        own = getattr(sys.modules.get(type(module).__module__), "eager_attention_forward", None)
        if own is None or own is function:
            return
        known, taken = _parameters(own), _parameters(function)
        for key, value in given.items():
            # A switch that is off asks for nothing (CLIP's output_attentions in 4.57).
            if value is None or value is False or key in taken or key not in known:
                continue
            if key in self._dropped:
                continue
            shown = f"{key}={value:g}" if isinstance(value, (int, float)) else key
            self._dropped[key] = AttentionReading(
                implementation=name, path=self._path(module), dropped=shown
            )

    def readings(self) -> tuple[AttentionReading, ...]:
        messages = []
        for logger, text in self._messages:
            path, implementation = self._speaker(logger)
            messages.append(AttentionReading(implementation, clean_path(path), warning=text))
        return (*messages, *self._dropped.values())

    def _path(self, module: Any) -> str:
        named = self._model.named_modules()
        return clean_path(next((path for path, other in named if other is module), ""))

    def _speaker(self, logger: str) -> tuple[str, str]:
        """Path and attention implementation of the outermost module whose code has this logger."""
        for path, module in self._model.named_modules():
            if type(module).__module__ == logger:
                config = getattr(module, "config", None)
                return path, str(getattr(config, "_attn_implementation", None) or "")
        return "", ""


class _Listening:
    """Hears what Python code logs as a warning, whatever level the loggers have, until removed."""

    def __init__(self, hear: Callable[[str, str], None]) -> None:
        self._originals = {
            name: getattr(logging.Logger, name)
            for name in ("warning", "warning_once")  # the latter is transformers'
            if hasattr(logging.Logger, name)
        }
        for name, original in self._originals.items():
            setattr(logging.Logger, name, _heard(original, hear))

    def remove(self) -> None:
        for name, original in self._originals.items():
            setattr(logging.Logger, name, original)


def _heard(original: Callable[..., Any], hear: Callable[[str, str], None]) -> Callable[..., Any]:
    def listening(logger: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
        text = str(message)
        hear(logger.name, " ".join(text.split()))
        return original(logger, message, *args, **kwargs)

    return listening


class _Wrapping:
    """Shows each call of transformers' attention functions, until removed."""

    def __init__(self, look: Callable[[str, Any, Any, dict[str, Any]], None]) -> None:
        self._own: dict[str, Any] = {}
        self._functions: Any = None
        modeling = sys.modules.get("transformers.modeling_utils")
        functions: Any = getattr(modeling, "ALL_ATTENTION_FUNCTIONS", None)
        self._local: Any = getattr(functions, "_local_mapping", None)
        if not isinstance(self._local, dict):
            return  # before 4.48 each implementation is a class of its own
        self._functions = functions
        self._own = dict(self._local)
        for name, function in list(functions.items()):
            functions[name] = _shown(name, function, look)

    def remove(self) -> None:
        if self._functions is not None:
            self._local.clear()
            self._local.update(self._own)


def _shown(
    name: str, function: Any, look: Callable[[str, Any, Any, dict[str, Any]], None]
) -> Callable[..., Any]:
    def shown(module: Any, *args: Any, **kwargs: Any) -> Any:
        look(name, function, module, kwargs)
        return function(module, *args, **kwargs)

    return shown


def _parameters(function: Any) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {item.name for item in parameters if item.kind is not item.VAR_KEYWORD}
