"""What one of several processes holds: what ZeRO and FSDP divide, and what they gather again.

The shares are those that DeepSpeed's and torch's own code makes; of FSDP 2 they are counted on real
processes by the tests. Sizes of buffers are brackets between what the libraries take at least and
by their largest default. No peak of a sharded run was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from lora_doctor.memory_plan.footprint import tensor_bytes
from lora_doctor.results import memory_parts
from lora_doctor.results.memory_plan import MemoryPart, Source

if TYPE_CHECKING:
    from lora_doctor.memory_plan.footprint import MetaModel, Sizes
    from lora_doctor.recipe.recipe import Recipe

Kind = Literal["ddp", "zero1", "zero2", "zero3", "fsdp"]

TITLES: dict[str, str] = {
    "ddp": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp": "FSDP",
}  # fmt: skip
#: DeepSpeed's own defaults, in elements: ``reduce_bucket_size``, ``stage3_max_live_parameters`` and
#: ``stage3_param_persistence_threshold``.
REDUCE_BUCKET = 500_000_000
MAX_LIVE = 1_000_000_000
PERSISTENT = 100_000
#: What transformers fills in for ``auto``: a bucket of the square of the hidden size, and a
#: threshold of this times the hidden size.
AUTO_PERSISTENT = 10
FLOAT32 = 4


@dataclass(frozen=True)
class Sharding:
    """How a model is spread over processes, each with a GPU of its own."""

    kind: Kind
    processes: int

    @classmethod
    def of(cls, recipe: Recipe) -> Sharding | None:
        """``None`` for a single process. Several without a kind of sharding are DDP."""
        processes = int(recipe.get("num_processes") or 1)
        return cls(recipe.get("sharding") or "ddp", processes) if processes > 1 else None

    @property
    def title(self) -> str:
        return TITLES[self.kind]

    @property
    def of_deepspeed(self) -> bool:
        return self.kind.startswith("zero")

    def dtype(self, recipe: Recipe) -> str | None:
        """DeepSpeed casts the whole model, adapters too, instead of using autocast."""
        return recipe.mixed_precision if self.of_deepspeed else None

    def weight(self, tensor: Any) -> int:
        """Elements of a weight that a process holds between its uses."""
        if self.kind not in ("zero3", "fsdp") or not _is_parameter(tensor):
            return int(tensor.numel())
        return self._share(tensor)

    def quantized(self, part: MemoryPart, whole: int) -> MemoryPart:
        """Only what is stored in a dtype that can be divided is (LD712)."""
        if part.name != memory_parts.QUANTIZED_WEIGHTS or part.bytes == whole:
            return part
        text = f"{part.formula}, if they can be divided; else all of them, {whole:,} bytes"
        return replace(part, formula=text, source="assumed", low=part.bytes, high=whole)

    def gradient(self, tensor: Any) -> int:
        """Elements of a trained weight's gradient that a process holds after the backward."""
        divided = self.kind in ("zero2", "zero3", "fsdp")
        return self._share(tensor) if divided else int(tensor.numel())

    def optimized(self, trained: Sequence[tuple[Any, int]]) -> list[tuple[Any, int]]:
        """The trained weights as the optimizer of a process sees them, each with its number."""
        import torch

        if self.kind == "ddp":
            return list(trained)
        if self.kind == "fsdp":
            return [(one.new_empty(self._share(one)), times) for one, times in trained]
        # DeepSpeed trains one flat piece of a copy in float32.
        count = _up(sum(int(one.numel()) * times for one, times in trained), self.processes)
        return [(torch.empty(count, device="meta", dtype=torch.float32), 1)]

    def parts(self, model: MetaModel) -> list[MemoryPart]:
        """What this kind of sharding takes beside the shares."""
        trained = model.trainable()
        size = sum(tensor_bytes(one) * times for one, times in trained)
        if self.kind == "ddp":
            text = "DDP's buckets: as large as the gradients, unless they share their memory"
            return [_bracket(memory_parts.SHARDING, 0, size, size, text)]
        parts = [self._gathered(model)] if self.kind in ("zero3", "fsdp") else []
        if self.of_deepspeed:
            parts += [self._master(trained), self._bucket(model, trained)]
        return parts

    def _share(self, tensor: Any) -> int:
        """FSDP 2 divides the rows of each tensor, the first process has most; ZeRO its elements."""
        if self.kind == "fsdp" and tensor.dim():
            rows = int(tensor.shape[0])
            return _up(rows, self.processes) * (int(tensor.numel()) // max(1, rows))
        return _up(int(tensor.numel()), self.processes)

    def _master(self, trained: Sequence[tuple[Any, int]]) -> MemoryPart:
        """ZeRO-3 trains weights in float32 as they are; the other stages copy them."""
        copied = [
            int(one.numel()) * times
            for one, times in trained
            if self.kind != "zero3" or one.element_size() != FLOAT32
        ]
        size = FLOAT32 * _up(sum(copied), self.processes)
        text = f"DeepSpeed's copy of the trained weights in float32, 1/{self.processes} of it"
        return MemoryPart("master weights", size, text, "counted")

    def _bucket(self, model: MetaModel, trained: Sequence[tuple[Any, int]]) -> MemoryPart:
        width = max((one.element_size() for one, _ in trained), default=FLOAT32)
        auto = _hidden(model) ** 2
        text = (
            f"reduce_bucket_size: {auto:,} elements for auto; DeepSpeed's own default is "
            f"{REDUCE_BUCKET:,}, two of them with overlap_comm"
        )
        return _bracket(memory_parts.SHARDING, 0, auto * width, 2 * REDUCE_BUCKET * width, text)

    def _gathered(self, model: MetaModel) -> MemoryPart:
        rest, block, largest, whole = _units(model)
        name = "gathered weights"
        if self.kind == "fsdp":
            text = (
                "what is outside the blocks stays whole during the step, with the largest block "
                "and the next one"
            )
            return _bracket(name, rest + block, rest + 2 * block, rest + 3 * block, text)
        hidden = _hidden(model)
        width = max((one.element_size() for one, _ in model.parameters()), default=FLOAT32)
        kept, kept_most = (
            sum(
                tensor_bytes(one) * times
                for one, times in model.parameters()
                if _is_parameter(one) and int(one.numel()) <= limit
            )
            for limit in (AUTO_PERSISTENT * hidden, PERSISTENT)
        )
        text = (
            "a block and what is fetched ahead, and the small weights that stay gathered; at most "
            f"stage3_max_live_parameters ({MAX_LIVE:,}) or all weights"
        )
        most = min(whole, MAX_LIVE * width + kept_most)
        usual = min(max(block, largest) + hidden**2 * width + kept, most)
        return _bracket(name, min(largest, usual), usual, most, text)


def shared_sizes(model: MetaModel, sharding: Sharding | None) -> tuple[dict[str, Sizes], int]:
    """Sizes of a process' weights, and bytes of its gradients."""
    held: Callable[[Any], int] | None = sharding.weight if sharding else None
    sizes = model.weights(held)
    if sharding is None:
        return sizes, sizes["adapters"].bytes
    return sizes, sum(
        sharding.gradient(one) * one.element_size() * times for one, times in model.trainable()
    )


def _units(model: MetaModel) -> tuple[int, int, int, int]:
    """Bytes of the weights outside the blocks, of the largest block, of the largest weight, and of
    all weights. Blocks are what the class says must not be split, else members of its lists."""
    blocks = _blocks(model.base)
    inside = dict.fromkeys(blocks, 0)
    rest = largest = 0
    seen: set[int] = set()
    for path, tensor in model.base.named_parameters():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        size, times = tensor_bytes(tensor), model.thinned.times(path)
        largest = max(largest, size)
        block = next((one for one in blocks if path.startswith(f"{one}.")), None)
        if block is None:
            rest += size * times
        else:
            inside[block] += size * times // max(1, model.thinned.times(block))
    whole = rest + sum(size * model.thinned.times(path) for path, size in inside.items())
    return rest, max(inside.values(), default=0), largest, whole


def _blocks(base: Any) -> list[str]:
    """Paths of the outermost ones."""
    import torch

    names = set(getattr(base, "_no_split_modules", None) or ())
    modules = dict(base.named_modules())
    found = [path for path, one in modules.items() if path and type(one).__name__ in names]
    if not found:
        found = [
            f"{path}.{name}".strip(".")
            for path, one in modules.items()
            if isinstance(one, torch.nn.ModuleList)
            for name in one._modules
        ]
    return [one for one in found if not any(one.startswith(f"{other}.") for other in found)]


def _hidden(model: MetaModel) -> int:
    """As transformers looks for it, to fill in what DeepSpeed's config leaves to it."""
    config = getattr(model.base, "config", None)
    for one in (config, getattr(config, "text_config", None)):
        size = getattr(one, "hidden_size", None) or getattr(one, "hidden_sizes", None)
        if size:
            return int(max(size) if isinstance(size, (list, tuple)) else size)
    return 0


def _bracket(name: str, low: int, middle: int, high: int, text: str) -> MemoryPart:
    assumed: Source = "assumed"
    return MemoryPart(name, middle, text, assumed, low, max(high, middle))


def _is_parameter(tensor: Any) -> bool:
    import torch

    return isinstance(tensor, torch.nn.Parameter)


def _up(count: int, parts: int) -> int:
    return -(-count // parts)
