"""How many bytes of tensors are alive while a block of code runs, and at most.

Every operation is seen below autograd, so what autograd keeps for the backward, temporaries and
gradients are all counted; a storage is counted once however many tensors look at it, and given
back when the last of them is gone. This is what an allocator would be asked for, on a device that
has no memory at all (``meta``) as on the CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Handler = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]


def intercepted(handler: Handler) -> Any:
    """A context in which ``handler(operation, args, kwargs)`` answers every torch operation."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            return handler(func, args, kwargs or {})

    return Mode()


@dataclass
class _Storage:
    """``born`` and ``died``: numbers of the moments. ``stands_for``: how many like it the full
    model would keep for the backward, where this one has fewer layers; ``lingers_for``: how many
    would still be there when all layers are through."""

    size: int
    born: int
    stands_for: int
    lingers_for: int
    died: int | None = None


class LiveBytes:
    """Records the storages that are made on ``device`` inside ``with live.watching():``.

    What existed before is not counted. A layer that stands for several (:meth:`enter`,
    :meth:`leave`) counts so often for what it keeps: what is still there when all layers are
    through (:meth:`layers_are_through`: a cache of keys and values) or when the forward has ended
    (:meth:`forward_is_over`: what the backward needs). What is gone by then counts once.
    """

    def __init__(self, device: str, existing: Iterable[Any] = ()) -> None:
        self.device = device
        self._factors = (1, 1)
        self._moment = 0
        self._over: int | None = None
        self._through: int | None = None
        self._log: list[_Storage] = []
        self._held: dict[int, tuple[Any, _Storage]] = {}
        self._inputs: set[int] = set()
        for tensor in existing:
            self._add(tensor, counts=False)

    def watching(self) -> Any:
        return intercepted(self._run)

    def layers_are_through(self) -> int:
        """The number of this moment, for :meth:`alive_at`."""
        if self._over is None:
            self._through = self._moment
        return self._moment

    def forward_is_over(self) -> int:
        """The number of this moment, for :meth:`alive_at`."""
        self._over = self._moment
        return self._moment

    def enter(
        self, layer_inputs: Iterable[Any], stands_for: int, lingers_for: int
    ) -> tuple[tuple[int, int], int]:
        """A layer starts that stands for several; returns what :meth:`leave` wants.

        An input that no layer before has got (hidden states, not the mask) is one such input for
        each of them. ``lingers_for`` is that of the first layer of a kind, not of the last: the
        last leaves behind what the next would have taken away.
        """
        token = (self._factors, self._moment)
        self._factors = (stands_for, lingers_for)
        for one in self._storages(layer_inputs):
            if id(one) not in self._inputs and self._over is None:
                self._inputs.add(id(one))
                one.stands_for = stands_for
        return token

    def leave(self, layer_outputs: Iterable[Any], token: tuple[tuple[int, int], int]) -> None:
        """It ends; its output is one, until another layer takes it as input."""
        self._factors, since = token
        for one in self._storages(layer_outputs):
            if one.born > since and self._over is None:
                one.stands_for, one.lingers_for = self._factors

    def alive_at(self, moment: int) -> int:
        """Bytes alive at this moment."""
        return sum(self._weight(one) for one in self._log if _alive(one, moment))

    def now(self) -> int:
        """The number of this moment, for :meth:`alive_at`."""
        return self._moment

    def peak(self, until: int | None = None) -> int:
        """Most bytes that were alive at once, up to the moment ``until``."""
        changes: dict[int, int] = {}
        for one in self._log:
            weight = self._weight(one)
            changes[one.born] = changes.get(one.born, 0) + weight
            if one.died is not None:
                changes[one.died] = changes.get(one.died, 0) - weight
        live = most = 0
        for moment in sorted(changes):
            if until is not None and moment > until:
                break
            live += changes[moment]
            most = max(most, live)
        return most

    def _weight(self, one: _Storage) -> int:
        if _alive(one, self._over):
            return one.size * one.stands_for
        return one.size * one.lingers_for if _alive(one, self._through) else one.size

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if isinstance(result, (tuple, list)):
            for value in result:
                self._see(value)
        else:
            self._see(result)
        return result

    def _see(self, value: Any) -> None:
        if hasattr(value, "untyped_storage") and value.device.type == self.device:
            self._add(value)

    def _storages(self, values: Iterable[Any]) -> Iterator[_Storage]:
        from torch.utils._pytree import tree_flatten

        for value in tree_flatten(values)[0]:
            held = self._held.get(_key(value)) if hasattr(value, "untyped_storage") else None
            if held is not None:
                yield held[1]

    def _add(self, tensor: Any, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = _key(tensor)
        if key in self._held:
            return
        self._moment += 1
        one = _Storage(storage.nbytes(), self._moment, *self._factors)
        if counts:
            self._log.append(one)

        def gone(_: Any) -> None:
            self._moment += 1
            one.died = self._moment
            self._held.pop(key, None)

        self._held[key] = (weakref.ref(storage, gone), one)


def _alive(one: _Storage, moment: int | None) -> bool:
    return moment is not None and one.born <= moment and (one.died is None or one.died > moment)


def _key(tensor: Any) -> int:
    """The address of a tensor's storage, its own as long as it lives."""
    return int(tensor.untyped_storage()._cdata)
