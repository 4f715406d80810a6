"""Idle: why an adapter got no gradient. Whether its layer ran, how, and who read its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.model.module_path import pattern_of
from lora_doctor.results.observations import UnusedAdapterReading
from lora_doctor.text import calling_line, clean_path

if TYPE_CHECKING:
    from lora_doctor.contract.adapters import AdapterLayer

_OF_PEFT = "peft/"
Why = Literal["not-run", "weight-read", "no-grad", "unused", "zero"]


@dataclass
class _Seen:
    """One adapted layer in the training forwards. ``silent``: calls with gradients switched off,
    ``silent_at`` the line of the last of them; ``read_at``: where its weight is an operand."""

    layer: AdapterLayer
    calls: int = 0
    silent: int = 0
    silent_at: str = ""
    read_at: str = ""


@dataclass
class _Reason:
    """Why a layer's adapter is unused. Equal reasons of layers that are alike make one reading."""

    why: Why
    where: str = ""
    inside: str = ""
    paths: list[str] = field(default_factory=list)


class UnusedAdapters(Observer):
    """Fills ``Observations.unused_adapters``: one reading for each reason of layers that are
    alike."""

    field: ClassVar[str] = "unused_adapters"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._ran: set[str] = set()
        self._seen: list[_Seen] = []

    def watch(self, model: Any) -> Iterable[Any]:
        return self._note_runs(model)

    def attached(self, model: Any, layers: list[AdapterLayer]) -> None:
        self._seen = [_Seen(layer) for layer in layers]

    def watch_training(self, model: Any) -> Iterable[Any]:
        weights = {id(_weight(seen.layer.module)): seen for seen in self._seen}
        for shared in (id(None), *_shared_weights(model)):
            weights.pop(shared, None)  # its reader may mean the other layer
        for seen in self._seen:
            yield seen.layer.module.register_forward_pre_hook(self.hook(_count(seen)))
        yield from self._note_runs(model)
        yield _Readers(weights)

    def _note_runs(self, model: Any) -> Iterable[Any]:
        for path, module in model.named_modules():
            yield module.register_forward_pre_hook(self.hook(self._note(clean_path(path))))

    def _note(self, path: str) -> Callable[..., None]:
        def look(*_arguments: Any) -> None:
            self._ran.add(path)

        return look

    def readings(self) -> tuple[UnusedAdapterReading, ...]:
        from lora_doctor.contract.adapters import without_tokens

        excused = {id(layer) for layer in without_tokens([seen.layer for seen in self._seen])}
        alive = _with_parents(self._ran)
        found: dict[tuple[str, str, str, str, str], _Reason] = {}
        for seen in self._seen:
            layer = seen.layer
            if layer.trained or layer.not_fed or not layer.trainable or id(layer) in excused:
                continue
            reason = _reason(seen, alive)
            base = getattr(layer.module, "base_layer", layer.module)
            key = (layer.pattern, type(base).__name__, reason.why, reason.where, reason.inside)
            found.setdefault(key, reason).paths.append(layer.path)
        return tuple(
            UnusedAdapterReading(pattern, tuple(reason.paths), name, reason.why, where, inside)
            for (pattern, name, _, where, inside), reason in found.items()
        )


def _reason(seen: _Seen, alive: set[str]) -> _Reason:
    if not seen.calls:
        if seen.read_at:
            return _Reason("weight-read", seen.read_at)
        return _Reason("not-run", inside=_outermost(seen.layer.path, alive))
    if seen.silent == seen.calls:
        return _Reason("no-grad", seen.silent_at)
    return _Reason("zero" if any(p.seen for p in seen.layer.trainable) else "unused")


def _count(seen: _Seen) -> Callable[..., None]:
    def look(*_arguments: Any) -> None:
        import torch

        seen.calls += 1
        if not torch.is_grad_enabled():
            seen.silent += 1
            seen.silent_at = calling_line()

    return look


def _weight(module: Any) -> Any:
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    return getattr(base, "weight", None)


def _shared_weights(model: Any) -> set[int]:
    """Ids of weights that two modules have, such as a head tied to the embeddings."""
    weights = [id(module._parameters.get("weight")) for module in model.modules()]
    return {one for one, count in Counter(weights).items() if count > 1}


def _with_parents(paths: set[str]) -> set[str]:
    """The paths and every module around them; a list of layers is never called itself."""
    found = {""}
    for path in paths:
        while path and path not in found:
            found.add(path)
            path = path.rpartition(".")[0]
    return found


def _outermost(path: str, alive: set[str]) -> str:
    """The outermost module on the way to ``path`` in which nothing ran, numbers as ``*``."""
    parts = path.split(".")
    ends = range(1, len(parts) + 1)
    dead = next((end for end in ends if ".".join(parts[:end]) not in alive), len(parts))
    return pattern_of(".".join(parts[:dead]))


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


class _Readers:
    """Notes, until removed, which line hands one of these weights to a torch function. A handle
    like that of a hook."""

    def __init__(self, weights: dict[int, _Seen]) -> None:
        from torch import Tensor
        from torch.overrides import TorchFunctionMode

        class Mode(TorchFunctionMode):  # type: ignore[misc]
            def __torch_function__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                result = func(*args, **(kwargs or {}))
                # Asking for its dtype or shape is no use of a weight.
                if any(isinstance(one, Tensor) for one in _flat(result)):
                    for value in (*args, *(kwargs or {}).values()):
                        seen = weights.get(id(value))
                        # Of a layer that is called, its own forward is the reader.
                        if seen is not None and not seen.calls and not seen.read_at:
                            line = calling_line()
                            seen.read_at = "" if line.startswith(_OF_PEFT) else line
                return result

        self._mode = Mode()
        self._mode.__enter__()

    def remove(self) -> None:
        self._mode.__exit__(None, None, None)
