"""Models that look at numbers, run on the meta device, where tensors have none.

A forward asks whether the mask is all ones, counts the places of images, or sends tokens to
experts. The numbers behind such questions come from the inputs, which are known: tensors computed
from known ones are computed on the CPU as well, so the question gets its true answer. What hangs
on weights or activations has none, with one exception: a router's choice of experts, for which an
even spread over the experts is put in and said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from lora_doctor.memory_plan.gpu_kernels import run_as_on_a_gpu
from lora_doctor.memory_plan.live_tensors import intercepted

#: Elements up to which a tensor is computed on the CPU as well: an attention mask of 4096 tokens.
MOST_ELEMENTS = 1 << 24
#: A choice among more than this is no choice among experts.
MOST_EXPERTS = 1024


class UnknownValue(Exception):
    """The code asks for a number that hangs on weights or activations."""


class KnownValues:
    """Keeps a CPU twin of each meta tensor whose numbers are known.

    ``spread``: whether a router's choice had to be made up.
    """

    def __init__(self) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self.spread = False
        self._twins: Any = WeakTensorKeyDictionary()

    def answering(self) -> Any:
        return intercepted(self._run)

    def to_meta(self, tensor: Any) -> Any:
        """A meta tensor whose numbers are those of this CPU tensor."""
        moved = tensor.to("meta")
        self._twins[moved] = tensor
        return moved

    def numbers(self, data: Any) -> Any:
        """Nested lists in which known meta tensors are those of the CPU."""
        if isinstance(data, (list, tuple)):
            return [self.numbers(item) for item in data]
        return self._twins[data] if _is_tensor(data) and data in self._twins else data

    def _joined(self, value: Any) -> Any:
        """A CPU tensor that meets meta tensors: an input that nobody has moved."""
        if _is_tensor(value) and value.device.type == "cpu" and value.dim():
            return self.to_meta(value)
        return value

    # -- one operation --------------------------------------------------------------------------

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        from torch.utils._pytree import tree_flatten, tree_map

        inputs = [value for value in tree_flatten((args, kwargs))[0] if _is_tensor(value)]
        on_meta = [value for value in inputs if value.device.type == "meta"]
        if on_meta and len(on_meta) < len(inputs) and _name(func) != "copy_":
            args, kwargs = tree_map(self._joined, args), tree_map(self._joined, dict(kwargs))
            inputs = [value for value in tree_flatten((args, kwargs))[0] if _is_tensor(value)]
            on_meta = [value for value in inputs if value.device.type == "meta"]
        known = all(value in self._twins for value in on_meta)
        if _leaves_meta(func, kwargs, on_meta):
            if not known:
                raise UnknownValue(f"{_name(func)} of a value that hangs on weights")
            return self._on_cpu(func, args, kwargs)
        if not known:
            return self._unknown(func, args, kwargs)
        to_meta = bool(on_meta) or str(kwargs.get("device", "")) == "meta"
        if not to_meta or any(value.numel() > MOST_ELEMENTS for value in inputs):
            return func(*args, **kwargs)
        if inputs or _is_small(func, args, kwargs):
            return self._both(func, args, kwargs)
        return func(*args, **kwargs)

    def _both(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """On meta and on the CPU; where meta cannot (``nonzero``), shapes come from the CPU."""
        from torch.utils._pytree import tree_flatten, tree_map

        try:
            real = self._on_cpu(func, args, kwargs)
        except NotImplementedError:
            return self._unknown(func, args, kwargs)  # the CPU has not what a GPU has
        try:
            result = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):
            result = tree_map(lambda v: _like(v) if _is_tensor(v) else v, real)
        pairs = zip(tree_flatten(result)[0], tree_flatten(real)[0], strict=True)
        for made, twin in pairs:
            if _is_tensor(made) and made.device.type == "meta" and twin.shape == made.shape:
                self._twins[made] = twin
        return result

    def _on_cpu(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        import torch
        from torch.utils._pytree import tree_map

        def twin(value: Any) -> Any:
            if _is_tensor(value):
                return self._twins[value] if value.device.type == "meta" else value
            if isinstance(value, torch.device) and value.type == "meta":
                return torch.device("cpu")
            return value

        return func(*tree_map(twin, args), **tree_map(twin, dict(kwargs)))

    def _unknown(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        import torch

        aten = torch.ops.aten
        packet = getattr(func, "overloadpacket", None)
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            args = (args[0], [self._places(index) for index in args[1]], *args[2:])
            args = (args[0], [one for some in args[1] for one in some], *args[2:])
        elif packet is aten.masked_select and args[1] in self._twins:
            # As many as the mask has; the numbers stay unknown.
            count = int(torch.broadcast_to(self._twins[args[1]], args[0].shape).sum())
            return args[0].new_empty(count)
        try:
            result = run_as_on_a_gpu(func, args, kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error).lower() and "dynamic" not in str(error).lower():
                raise
            raise UnknownValue(f"{_name(func)} of a value that hangs on weights") from error
        if func._schema.is_mutable:
            self._forget(func, args, kwargs)
        if packet in (aten.topk, aten.argmax):
            self._choose(packet, args, result)
        return result

    def _places(self, index: Any) -> list[Any]:
        """A mask as index turned into the places where it is true, as indexing does itself."""
        import torch

        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        if index.device.type != "meta":
            return list(index.nonzero(as_tuple=True))
        if index not in self._twins:
            raise UnknownValue("a mask that hangs on weights")
        return [self.to_meta(one) for one in self._twins[index].nonzero(as_tuple=True)]

    def _choose(self, packet: Any, args: tuple[Any, ...], result: Any) -> None:
        """Give a router's choice numbers: each expert in turn."""
        import torch

        chosen = result[1] if isinstance(result, (tuple, list)) else result
        choices = args[0].shape[-1] if args[0].dim() else 0
        if not 1 < choices <= MOST_EXPERTS or not 0 < chosen.numel() <= MOST_ELEMENTS:
            return
        turns = torch.arange(chosen.numel()).view(chosen.shape) % choices
        self._twins[chosen] = turns
        self.spread = True

    def _forget(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Something unknown was written into these."""
        for place, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if not written:
                continue
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            if _is_tensor(value) and value in self._twins:
                del self._twins[value]


class _WithValues:
    """``torch.tensor`` and ``torch.as_tensor`` make tensors on meta without looking at the numbers
    and unseen by a dispatch mode: here they are made on the CPU and moved."""

    def __init__(self, values: KnownValues) -> None:
        self.values = values

    def made(self, plain: Any) -> Any:
        def make(data: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            device = kwargs.get("device")
            if isinstance(data, torch.Tensor) or device is None:
                return plain(data, *args, **kwargs)
            if torch.device(device).type != "meta":
                return plain(data, *args, **kwargs)
            real = self.values.numbers(data)
            return self.values.to_meta(plain(real, *args, **{**kwargs, "device": "cpu"}))

        return make


@contextlib.contextmanager
def running_on_meta(values: KnownValues) -> Iterator[None]:
    """Models run on meta in this context, and ``values`` answers what they ask.

    ``torch.autocast``, which transformers 4 opens on the device of its input, knows no meta. A
    message that has a known number in it shows the number: batches are corrected by such messages.
    """
    import torch

    real: Any = torch.autocast

    class Autocast(real):  # type: ignore[misc]
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "meta" else device_type, *args, **kwargs)

    with_values = _WithValues(values)
    replaced = {
        "autocast": Autocast,
        "tensor": with_values.made(torch.tensor),
        "as_tensor": with_values.made(torch.as_tensor),
    }
    plain = {name: getattr(torch, name) for name in replaced}
    formatted: Any = torch.Tensor.__format__
    vars(torch).update(replaced)
    torch.Tensor.__format__ = lambda one, spec: formatted(values.numbers(one), spec)
    try:
        with values.answering():
            yield
    finally:
        torch.Tensor.__format__ = formatted
        vars(torch).update(plain)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _like(value: Any) -> Any:
    import torch

    return torch.empty_like(value, device="meta")


def _leaves_meta(func: Any, kwargs: Mapping[str, Any], on_meta: list[Any]) -> bool:
    """Whether the operation takes a number out of a meta tensor."""
    if not on_meta:
        return False
    name = _name(func)
    if name in ("_local_scalar_dense", "equal", "is_nonzero"):
        return True
    return name == "_to_copy" and str(kwargs.get("device", "meta")) != "meta"


def _is_small(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether what an operation without inputs makes is small enough to be made on the CPU too."""
    return bool(func(*args, **kwargs).numel() <= MOST_ELEMENTS)


def _name(func: Any) -> str:
    return str(getattr(func, "overloadpacket", func)).rpartition(".")[2]
