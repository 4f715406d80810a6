"""Functions that somebody put on single modules, and whether they and the adapters still meet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lora_doctor.contract.observers.base import Observer, Setting
from lora_doctor.nn import rebinding
from lora_doctor.results.observations import InstancePatch
from lora_doctor.text import clean_path

if TYPE_CHECKING:
    from lora_doctor.contract.adapters import AdapterLayer


@dataclass
class _Seen:
    """One patch. ``holds``: ids of what the function holds on to."""

    path: str
    name: str
    kind: Literal["module", "wrapper"]
    source: str
    holds: set[int] = field(default_factory=set)
    module: Any = None
    calls_before: int = 0
    calls: int = 0
    inner_calls: int = 0


class InstancePatches(Observer):
    """Counts calls of functions in the ``__dict__`` of modules that stand for a method of the
    class: in the base model's forwards, and in the training forward with adapters."""

    field = "instance_patches"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._seen: dict[tuple[int, str], _Seen] = {}
        self._layers: list[AdapterLayer] = []
        self._layer_calls: dict[int, int] = {}

    def watch(self, model: Any) -> Iterable[Any]:
        return self._count(model, "calls_before")

    def attached(self, model: Any, layers: list[AdapterLayer]) -> None:
        self._layers = layers

    def watch_training(self, model: Any) -> Iterable[Any]:
        yield from self._count(model, "calls")
        if not self._seen:
            return
        for layer in self._layers:
            self._layer_calls.setdefault(id(layer), 0)
            yield layer.module.register_forward_pre_hook(self.hook(self._calls_of(layer)))

    def _calls_of(self, layer: AdapterLayer) -> Callable[..., None]:
        def look(*arguments: Any) -> None:
            self._layer_calls[id(layer)] += 1

        return look

    def _count(self, model: Any, key: Literal["calls_before", "calls"]) -> Iterator[Any]:
        for path, attributes, name, value in list(rebinding.patches(model)):
            module = model.get_submodule(path)
            if callable(getattr(type(module), name, None)):
                seen = self._of(module, path, name, "module", value)
                yield _Counter(attributes, name, value, functools.partial(_add, seen, key))
            elif (inner := _method_inside(module, name)) is not None:
                seen = self._of(module, path, name, "wrapper", value)
                yield _Counter(attributes, name, value, functools.partial(_add, seen, key))
                if name not in vars(inner):
                    method = getattr(inner, name)
                    counts = functools.partial(_add, seen, "inner_calls")
                    yield _Counter(vars(inner), name, method, counts, added=True)

    def _of(
        self, module: Any, path: str, name: str, kind: Literal["module", "wrapper"], value: Any
    ) -> _Seen:
        key = (id(module), name)
        if key not in self._seen:
            holds = {id(item) for item in rebinding.captured(value)}
            source = rebinding.source_of(value)
            self._seen[key] = _Seen(clean_path(path), name, kind, source, holds)
        seen = self._seen[key]
        # PEFT may have put an adapter around the module since: the path is that of now.
        seen.path, seen.module = clean_path(path), module
        return seen

    def readings(self) -> tuple[InstancePatch, ...]:
        self._follow_copies()
        found = []
        for (module, _), seen in self._seen.items():
            around = [layer for layer in self._layers if self._involves(layer, module, seen)]
            silent = [layer.path for layer in around if self._is_bypassed(layer, seen)]
            found.append(
                InstancePatch(
                    path=seen.path,
                    name=seen.name,
                    kind=seen.kind,
                    source=seen.source,
                    calls_before=seen.calls_before,
                    calls=seen.calls,
                    inner_calls=seen.inner_calls,
                    around=tuple(layer.path for layer in around),
                    around_calls=sum(self._layer_calls.get(id(layer), 0) for layer in around),
                    bypassed=tuple(silent),
                )
            )
        return tuple(found)

    def _follow_copies(self) -> None:
        """A module that is trained as a copy is called in place of the original, patches too."""
        for layer in self._layers:
            copies = getattr(layer.module, "modules_to_save", None)
            if copies is None or not hasattr(layer.module, "original_module"):
                continue
            original = layer.module.original_module
            for seen in self._seen.values():
                if seen.module is original:
                    twins = [self._seen.get((id(item), seen.name)) for item in copies.values()]
                    seen.calls += sum(twin.calls for twin in twins if twin is not None)

    def _involves(self, layer: AdapterLayer, module: int, seen: _Seen) -> bool:
        """Whether the patch is on this layer, or holds what the adapter was put around."""
        inside = _original(layer.module)
        own = {id(layer.module), id(inside), *(id(p) for p in _parameters(inside))}
        return module in own or bool(own & seen.holds)

    def _is_bypassed(self, layer: AdapterLayer, seen: _Seen) -> bool:
        """The patch ran, and the adapter took no part: not called, or no gradient came."""
        if not seen.calls:
            return False
        if not self._layer_calls.get(id(layer), 0):
            return True
        learnt = any(parameter.got_gradient for parameter in layer.parameters)
        return layer.calls > 0 and bool(layer.trainable) and not learnt


def _add(seen: _Seen, key: str) -> None:
    setattr(seen, key, getattr(seen, key) + 1)


class _Counter:
    """Stands in for a callable until it is removed. ``added``: there was none on the instance."""

    def __init__(
        self,
        attributes: dict[str, Any],
        name: str,
        value: Any,
        count: Callable[[], None],
        added: bool = False,
    ) -> None:
        def counting(*arguments: Any, **named: Any) -> Any:
            count()
            return value(*arguments, **named)

        functools.update_wrapper(counting, value, updated=())
        self._attributes, self._name, self._value, self._added = attributes, name, value, added
        self._counting = counting
        attributes[name] = counting

    def remove(self) -> None:
        if self._attributes.get(self._name) is not self._counting:
            return  # somebody set another one meanwhile: theirs stays
        if self._added:
            del self._attributes[self._name]
        else:
            self._attributes[self._name] = self._value


def _method_inside(module: Any, name: str) -> Any:
    """The model inside a wrapper of PEFT's that has a method of this name, which calls in there
    find; ``None`` for any other module, and for PEFT's own notes."""
    import peft
    from peft.tuners.tuners_utils import BaseTuner

    if not isinstance(module, (peft.PeftModel, peft.PeftMixedModel, BaseTuner)):
        return None
    from lora_doctor.model.stacked import bottom

    inner = bottom(module) if not isinstance(module, BaseTuner) else module.model
    return inner if callable(getattr(type(inner), name, None)) else None


def _original(module: Any) -> Any:
    """What an adapter was put around; itself for a module that is trained as a copy."""
    if hasattr(module, "original_module"):
        return module.original_module
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _parameters(module: Any) -> Iterator[Any]:
    yield from module.parameters() if hasattr(module, "parameters") else ()
