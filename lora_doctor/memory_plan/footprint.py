"""One recipe on the meta device: what its weights, adapters, optimizer and one step take.

The real classes do it: transformers builds, bitsandbytes quantizes, PEFT prepares and wraps, the
forward and the backward run, all on tensors without memory whose sizes are counted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_doctor.memory_plan.autocast import Autocast, mixed_by_the_trainer
from lora_doctor.memory_plan.data_dependent_ops import KnownValues, running_on_meta
from lora_doctor.memory_plan.eight_bit import EightBitInputs
from lora_doctor.memory_plan.gpu_kernels import kernels_of_a_gpu
from lora_doctor.memory_plan.live_tensors import LiveBytes
from lora_doctor.memory_plan.quantized import constants, quantize
from lora_doctor.memory_plan.quiet import quiet
from lora_doctor.model import training_setup
from lora_doctor.model.meta_copy import MetaCopy
from lora_doctor.nn import dtypes
from lora_doctor.nn.embeddings import output_embeddings
from lora_doctor.recipe.recipe import Recipe


@dataclass
class Sizes:
    """Numbers of elements by dtype, and their bytes."""

    by_dtype: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def add(self, tensor: Any, times: int, count: int | None = None) -> None:
        """``count``: elements of the tensor that are there, where it is not all of them."""
        name = str(tensor.dtype).removeprefix("torch.")
        elements = (int(tensor.numel()) if count is None else count) * times
        self.by_dtype[name] = self.by_dtype.get(name, 0) + elements
        self.bytes += elements * int(tensor.element_size())

    def words(self, unit: str = "") -> str:
        """Such as ``6,607,077,376 bfloat16 × 2``."""
        return " + ".join(
            f"{count:,} {name}{unit} × {_width(name):g}" for name, count in self.by_dtype.items()
        )


@dataclass
class Step:
    """Bytes of one forward and backward beside the weights.

    ``kept``: alive when the output head is reached, what the backward needs. ``peak``: most that
    was alive at once. ``forward_peak``: the same before the backward. ``held``: what is not given
    back after the backward as long as the loss lives. ``eight_bit_inputs``: of all 8-bit layers
    together. ``spread``: tokens were spread evenly over experts.
    """

    kept: int
    peak: int
    forward_peak: int
    held: int
    eight_bit_inputs: int
    spread: bool

    @property
    def held_longer(self) -> int:
        """Bytes above :attr:`peak` in a loop that holds the loss while the next forward runs."""
        return max(0, self.forward_peak + self.held - self.peak)


class MetaModel:
    """A recipe's model on the meta device, ready for a training step.

    Args:
        bones: the base model without numbers.
        recipe: open keys filled.
        quantization: as the checkpoint or the recipe asks, or ``None``.
        dtype: of the weights that are not quantized.
        loaded: it comes out of loading; a factory may have put the adapters on a part of it.
        half: precision to which the whole model is cast before it is trained, as DeepSpeed does.
    """

    def __init__(
        self,
        thinned: MetaCopy,
        recipe: Recipe,
        quantization: Literal["4bit", "8bit"] | None,
        dtype: str,
        *,
        loaded: bool = True,
        half: str | None = None,
    ) -> None:
        import copy

        import torch

        self.thinned = thinned
        self.dtype = getattr(torch, dtype)
        self.model = copy.deepcopy(thinned.model).to(self.dtype)
        _keep_float32(self.model, dtype)
        self.recipe = recipe
        #: Bytes of the two largest weights that PEFT's preparation cast to float32, before it did.
        self.recast = 0
        parents = {path.rpartition(".")[0] for path in thinned.repeats}
        self._layers = {
            path: module
            for path, module in self.model.named_modules()
            if path.rpartition(".")[0] in parents
        }
        if quantization is not None:
            self.model = quantize(self.model, recipe, quantization)
            before = [(one, one.dtype, tensor_bytes(one)) for one, _ in self.parameters()]
            self.model = training_setup.for_kbit_training(self.model, recipe)
            cast = [size for one, given, size in before if one.dtype != given]
            self.recast = sum(sorted(cast)[-2:])
        wrap = training_setup.wrapper(self.model, recipe, loaded=loaded)
        if wrap is not None:
            with torch.device("meta"):
                self.model = wrap(self.model)
        self.model.train()
        training_setup.set_up(self.model, recipe)
        if half is not None:
            self.dtype = getattr(torch, half)
            self.model.to(self.dtype)

    @property
    def base(self) -> Any:
        wrapped = hasattr(self.model, "get_base_model")
        return self.model.get_base_model() if wrapped else self.model

    def parameters(self) -> Iterator[tuple[Any, int]]:
        """Each parameter and buffer once, with the number of such in the full model."""
        seen: set[int] = set()
        for tensors in (self.base.named_parameters(), self.base.named_buffers()):
            for path, tensor in tensors:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor, self.thinned.times(path)
        for _, tensor in self.model.named_parameters():  # prompts stand outside the base
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor, 1

    def trainable(self) -> list[tuple[Any, int]]:
        return [(one, times) for one, times in self.parameters() if one.requires_grad]

    def weights(self, held: Callable[[Any], int] | None = None) -> dict[str, Sizes]:
        """``plain``, ``quantized``, ``constants`` and ``adapters``: whatever is trained.

        ``held``: elements of a weight that one process of several holds. Constants are not divided.
        """
        sizes = {name: Sizes() for name in ("plain", "quantized", "constants", "adapters")}
        packed: set[int] = set()
        for path, module in self.base.named_modules():
            if not type(module).__module__.startswith("bitsandbytes"):
                continue
            times = self.thinned.times(path)
            packed.add(id(module.weight))
            sizes["quantized"].add(module.weight, times, held and held(module.weight))
            for one in constants(module):
                sizes["constants"].add(one, times)
        for tensor, times in self.parameters():
            if id(tensor) not in packed:
                name = "adapters" if tensor.requires_grad else "plain"
                sizes[name].add(tensor, times, held and held(tensor))
        return sizes

    def step(
        self,
        inputs: Mapping[str, Any],
        loss_of: Callable[[Any, Any], Any],
        autocast: str | None = None,
    ) -> Step:
        """Run a forward and a backward on these CPU inputs, moved to meta.

        ``autocast``: the half precision that the Trainer is asked for.

        Raises:
            UnknownValue: the code asks for a number that hangs on weights.
            Exception: whatever else the model raises.
        """
        values = KnownValues()
        existing = [*self.model.parameters(), *self.model.buffers()]
        for module in self.base.modules():
            if type(module).__module__.startswith("bitsandbytes"):
                existing += constants(module)
        live = LiveBytes("meta", existing)
        head: list[int] = []
        handles = list(self._watch_layers(live))
        eight_bit = EightBitInputs(self.base, self.thinned)
        handles += eight_bit.handles
        output = output_embeddings(self.base)
        if output is not None:
            handles.append(
                output.register_forward_pre_hook(lambda *_: head.append(live.layers_are_through()))
            )
        # Gradients of the adapters are counted by themselves.
        for one, _ in self.trainable():
            handles.append(one.register_post_accumulate_grad_hook(_drop_gradient))
        mixed = Autocast(autocast) if autocast is not None else None
        try:
            with (
                quiet(), kernels_of_a_gpu(mixed), live.watching(), running_on_meta(values),
                mixed_by_the_trainer(self.model, mixed),
            ):  # fmt: skip
                given = {name: self._moved(one, values) for name, one in inputs.items()}
                loss = loss_of(self.model, given)
                gc.collect()
                end = live.forward_is_over()
                eight_bit.forward_is_over()
                loss.backward() if mixed is None else mixed.backward(loss)
                del given
                after = live.now()
                del loss
        finally:
            for handle in handles:
                handle.remove()
        at = head[0] if head else end
        return Step(
            live.alive_at(at), live.peak(), live.peak(end), live.alive_at(after),
            eight_bit.bytes, values.spread,
        )  # fmt: skip

    def _moved(self, value: Any, values: KnownValues) -> Any:
        if not hasattr(value, "untyped_storage"):
            return value
        return values.to_meta(value.to(self.dtype) if value.is_floating_point() else value)

    def _watch_layers(self, live: LiveBytes) -> Iterator[Any]:
        lingering = self._lingering()
        for path, module in self._layers.items():
            times = self.thinned.times(path)
            yield from _watch(module, live, times, lingering.get(path, times))

    def _lingering(self) -> dict[str, int]:
        """How many layers each one stands for in what is there when all are through: the first of
        a kind for the rest of it, the second, which may be the last to run, for itself."""
        result: dict[str, int] = {}
        for second, count in self.thinned.repeats.items():
            parent = second.rpartition(".")[0]
            siblings = [path for path in self._layers if path.rpartition(".")[0] == parent]
            before = siblings[: siblings.index(second)] if second in siblings else []
            firsts = [path for path in before if path not in {*self.thinned.repeats, *result}]
            if firsts:
                result[firsts[-1]] = self.thinned.times(second)
                result[second] = self.thinned.times(second) // count
        return result


def _keep_float32(model: Any, dtype: str) -> None:
    """What ``from_pretrained`` leaves in float32 when it loads in half precision."""
    names: set[str] = set()
    if dtype == "float16":
        names.update(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype in dtypes.HALF:
        names.update(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for path, module in model.named_modules():
        if names & set(path.split(".")):
            module.float()


def _watch(module: Any, live: LiveBytes, stands_for: int, lingers_for: int) -> tuple[Any, Any]:
    entered: list[tuple[tuple[int, int], int]] = []

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        entered.append(live.enter((args, kwargs), stands_for, lingers_for))

    def leave(_: Any, args: Any, output: Any) -> None:
        live.leave((output,), entered.pop())

    before = module.register_forward_pre_hook(enter, with_kwargs=True)
    return before, module.register_forward_hook(leave)


def tensor_bytes(tensor: Any) -> int:
    """Of its elements; storage that it shares counts once more."""
    return int(tensor.numel()) * int(tensor.element_size())


def _drop_gradient(parameter: Any) -> None:
    parameter.grad = None


def _width(dtype: str) -> float:
    import torch

    return float(torch.empty(0, dtype=getattr(torch, dtype)).element_size())
