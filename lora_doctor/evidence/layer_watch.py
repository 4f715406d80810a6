"""Quantized layers under watch, to find the one behind an exception.

Torch is imported inside functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from lora_doctor.results.quantized_use import Use
from lora_doctor.text import clean_path

_GET = "__getattr__"
#: Code that may read a quantized weight: it knows what it is.
_LIBRARIES = ("torch", "peft", "bitsandbytes", "accelerate", "lora_doctor")


class LayerWatch:
    """While it is entered: which quantized layer runs, whose weight was read beside it, whose
    output is changed.

    ``special``: paths of layers that have a forward of their own in floating point.
    """

    def __init__(self, model: Any, special: frozenset[str]) -> None:
        self._special = special
        self._layers = {
            clean_path(path): module
            for path, module in model.named_modules()
            if type(module).__module__.startswith("bitsandbytes")
        }
        self._paths = {id(layer): path for path, layer in self._layers.items()}
        self._own_getattr: dict[type, Any] = {}
        self._handles: list[Any] = []
        self._mode: Any = None
        #: Paths of the layers that are running, the innermost last.
        self._running: list[str] = []
        #: Layers whose input has more than three dimensions.
        self._wide: set[str] = set()
        #: Storage to the layer that gave it out, and the tensor, so that it is not used again.
        self._outputs: dict[int, tuple[str, Any]] = {}
        #: The layer whose weight was read last by code that does not call it, and that line.
        self._read = ("", "")
        self._changed = ""
        self._replaced = ""

    def behind(self) -> tuple[str, Use, str]:
        """The layer behind an exception that was just raised, how it is used, and where."""
        if self._changed:
            return self._changed, "output", ""
        if self._running and self._running[-1] in self._wide:
            return self._running[-1], "input", ""
        if self._replaced and not self._read[0]:
            return self._replaced, "class", ""
        return self._read[0], "weight", self._read[1]

    def __enter__(self) -> LayerWatch:
        for path, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._begin(path)))
            self._handles.append(layer.register_forward_hook(self._end(path)))
        for kind in {type(layer) for layer in self._layers.values()}:
            self._own_getattr[kind] = vars(kind).get(_GET)
            setattr(kind, _GET, self._getting(getattr(kind, _GET)))
        self._mode = _function_mode(self._failed)
        self._mode.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        mode, self._mode = self._mode, None  # no circle that would keep the outputs
        mode.__exit__(*exception)
        for handle in self._handles:
            handle.remove()
        for kind, own in self._own_getattr.items():
            if own is None:
                delattr(kind, _GET)
            else:
                setattr(kind, _GET, own)

    def _getting(self, get: Any) -> Any:
        """A module's parameters are no attributes: whoever asks for one comes by here."""

        def getting(layer: Any, name: str) -> Any:
            if name == "weight" and not self._running and id(layer) in self._paths:
                line = _reader()
                if line:
                    self._read = (self._paths[id(layer)], line)
            return get(layer, name)

        return getting

    def _begin(self, path: str) -> Any:
        def hook(_layer: Any, inputs: Any) -> None:
            self._running.append(path)
            if inputs and getattr(inputs[0], "ndim", 0) > 3:
                self._wide.add(path)

        return hook

    def _end(self, path: str) -> Any:
        def hook(_layer: Any, _inputs: Any, output: Any) -> None:
            self._running.pop()
            if path in self._special:
                self._replaced = path
            self._outputs[_storage(output)] = (path, output)

        return hook

    def _failed(self, tensor: Any, error: Exception) -> None:
        """A function of torch has raised on this tensor."""
        if "inplace" in str(error):
            self._changed = self._outputs.get(_storage(tensor), ("", None))[0]


def _function_mode(failed: Callable[[Any, Exception], None]) -> Any:
    """A context in which ``failed`` is told of each function of torch that raises."""
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            try:
                return func(*args, **(kwargs or {}))
            except Exception as error:
                if args:
                    failed(args[0], error)
                raise

    return Mode()


def _storage(tensor: Any) -> int:
    import torch

    if not isinstance(tensor, torch.Tensor):
        return 0
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage().data_ptr())


def _reader() -> str:
    """``file:line`` of the code that reads a weight, unless it is a library that may."""
    frame = sys._getframe(2)
    while frame is not None:
        parts = frame.f_code.co_filename.replace("\\", "/").split("/")
        package = next((name for name in _LIBRARIES if name in parts), "")
        if package == "torch" or (package == "peft" and frame.f_code.co_name == "weight"):
            frame = frame.f_back  # type: ignore[assignment]
            continue
        return "" if package else f"{'/'.join(parts[-4:])}:{frame.f_lineno}"
    return ""
