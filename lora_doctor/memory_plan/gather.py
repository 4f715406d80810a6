"""The memory plan of a recipe, gathered in a child process on the meta device.

Torch, transformers, PEFT and bitsandbytes are imported inside functions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_doctor.contract.half_precision import bfloat16_keys
from lora_doctor.errors import EvidenceError, LoraDoctorError
from lora_doctor.memory_plan import optimizer
from lora_doctor.memory_plan.alternatives import Alternative, alternatives
from lora_doctor.memory_plan.footprint import MetaModel, Step
from lora_doctor.memory_plan.quiet import quiet
from lora_doctor.memory_plan.sharding import Sharding, shared_sizes
from lora_doctor.memory_plan.thinned_model import Runnable, own_batch, runnable
from lora_doctor.model import checkpoint_quantization, quantization
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import Loader
from lora_doctor.nn import dtypes
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.gpus import CHEAPEST, gpus_of
from lora_doctor.recipe.memory_size import parse_memory
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results import memory_parts
from lora_doctor.results.memory_plan import (
    MemoryPart,
    MemoryPlan,
    MemoryVariant,
    PlannedGpu,
    Source,
)
from lora_doctor.results.note import Note
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.sandbox.worker import report_progress
from lora_doctor.static.installed.missing_package import missing_remedy
from lora_doctor.text import GIB
from lora_doctor.tiny_model.batch.result import BatchError

#: TRL's SFTConfig cuts at this length when nobody says another.
LENGTH = 1024
#: Alternatives are left out when the plan has taken this long.
SECONDS = 60.0
MIB = 1 << 20
#: The driver's and the libraries' own memory on the card; no two cards and versions agree.
CONTEXT = (300 * MIB, 550 * MIB, 1000 * MIB)
#: How far forward and backward on meta were from a real run, see tests/test_memory_plan.py.
TOLERANCE = 0.05
#: What the allocator holds beside what is in use, as a share of the step's own memory.
RESERVE = (0.0, 0.03, 0.10)
ONE_GPU = "one GPU holds everything: no sharding, no offloading, no other process on the GPU"
ASSUMPTIONS = (
    "attention runs in PyTorch's fused kernels where the model calls "
    "scaled_dot_product_attention (flash for half precision without a mask, else memory-efficient)",
    "every sample is full: no padding",
    "between forward and backward the loop keeps the loss alone, as the Trainer does",
)


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """:meth:`MemoryPlan.to_json` for this source and recipe (open keys filled).

    Raises:
        InputError: the source does not exist or is not what it should be.
        EvidenceError: the class cannot be built here; the text says why.
    """
    install_patches(patches)
    plan = Recipe.from_json(recipe)
    loader = Loader(source, plan)
    report_progress("counting memory on the meta device")
    try:
        with quiet():
            return _Planner(loader, plan).run().to_json()
    except LoraDoctorError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        seen = library_error(error)
        raise EvidenceError(
            f"the memory of {loader.loaded_by} cannot be counted: {seen.type}: {seen.message}"
        ) from error


@dataclass
class _Choice:
    """A number of the batch and who chose it."""

    value: int
    said_by: str


class _Planner:
    def __init__(self, loader: Loader, recipe: Recipe) -> None:
        self.recipe = recipe
        self.ends = time.monotonic() + SECONDS
        self.notes: list[Note] = []
        self.sharding = Sharding.of(recipe)
        self.assumptions = [self._place(), *ASSUMPTIONS]
        self.model = loader.build("meta")
        own = loader.source["kind"] == "factory"
        self.loaded = not own
        self.given = loader.factory_batches if own else None
        self.dtype = dtypes.dtype_of(self.model) if own else _dtype(recipe, loader.native_dtype)
        self.foreign = _foreign_quantization(loader.config, recipe)
        checkpoint = quantization.of_checkpoint(loader.config)
        self.kind: Literal["4bit", "8bit"] | None = (
            quantization.kind_of(checkpoint) if checkpoint else recipe.quantized
        )
        self.can_quantize = not own and checkpoint_quantization.stored(loader.config) is None
        self.can_checkpoint = bool(getattr(self.model, "supports_gradient_checkpointing", False))
        self.size = _batch_size(recipe)
        self.length = _length(recipe)
        self.optimizer = _optimizer(recipe)

    def run(self) -> MemoryPlan:
        first = self._runnable()
        batch = first.batch if isinstance(first, Runnable) else None
        if batch is not None:
            self._tell(batch)
        others = alternatives(
            self.recipe,
            self.dtype,
            can_checkpoint=self.can_checkpoint,
            can_quantize=self.can_quantize,
        )
        recipe = self._variant(Alternative("recipe", {}), first)
        variants = tuple(self._variant(one, first) for one in others)
        budget = self.recipe.get("memory_budget")
        return MemoryPlan(
            batch_size=self.size.value,
            length=batch.length if batch else self.length.value,
            batch_size_from=self.size.said_by,
            length_from=self.length.said_by,
            optimizer=self.optimizer,
            inputs=batch.shapes if batch else {},
            recipe=recipe,
            alternatives=variants,
            budget=parse_memory(budget) if budget else None,
            gpus=self._gpus(),
            processes=self.sharding.processes if self.sharding else 1,
            sharding=self.sharding.title if self.sharding else "",
            any_gpu=self.recipe.get("gpu") == [CHEAPEST],
            assumptions=tuple(self.assumptions),
            notes=tuple(self.notes),
        )

    def _place(self) -> str:
        if self.sharding is not None:
            return (
                f"{self.sharding.processes} processes with a GPU each and {self.sharding.title} "
                "divide the model evenly: no offloading, no other process on a card; sharded runs "
                "were not measured on GPUs"
            )
        if kind := self.recipe.get("sharding"):
            self.notes.append(
                Note("choice", f"sharding: {kind} divides nothing without num_processes")
            )
        return ONE_GPU

    def _gpus(self) -> tuple[PlannedGpu, ...]:
        """The named cards; where any will do, without those that lack the recipe's arithmetic."""
        names = self.recipe.get("gpu")
        found = gpus_of(names)
        needs = bfloat16_keys(self.recipe) or self.dtype == "bfloat16"
        if names == [CHEAPEST] and needs:
            left_out = ", ".join(gpu.name for gpu in found if not gpu.computes_bfloat16)
            found = tuple(gpu for gpu in found if gpu.computes_bfloat16)
            self.notes.append(Note("choice", f"{left_out}: left out, they emulate bfloat16"))
        return tuple(PlannedGpu(gpu.name, gpu.title, gpu.memory, gpu.memory_from) for gpu in found)

    def _runnable(self) -> Runnable | str:
        """What can be run, or the reason why nothing can."""
        try:
            if self.given:
                self.size = self.length = _Choice(0, "the factory's own batch")
                run = own_batch(self.model, self.given[0])
                self.size = _Choice(run.batch.size, self.size.said_by)
                return run
            return runnable(
                self.model.float(), self.recipe, self.size.value, self.length.value, self.dtype
            )
        except BatchError as error:
            return f"no batch on the meta device: {error.reason}"

    def _tell(self, batch: Any) -> None:
        if batch.left_out:
            text = (
                f"the batch has no {' and no '.join(batch.left_out)}, so what these take is "
                f"missing: {batch.objection}"
            )
            self.notes.append(Note("not-fed", text, batch.objection))
        if 0 < batch.length < self.length.value:
            self.notes.append(Note("step", f"the model has places for {batch.length} tokens"))
            self.length = _Choice(batch.length, "the model's own limit")

    # -- one variant ------------------------------------------------------------------------------

    def _variant(self, one: Alternative, run: Runnable | str) -> MemoryVariant:
        recipe = self.recipe.override(one.changes, "fix")
        if time.monotonic() > self.ends:
            return MemoryVariant(
                one.name, one.changes, (_missing("everything", "the time was up"),)
            )
        if self.foreign:
            reason = f"the checkpoint is quantized by {self.foreign}"
            return MemoryVariant(one.name, one.changes, (_missing("weights", reason),))
        kind = recipe.quantized if self.can_quantize else self.kind
        dtype = _dtype(recipe, self.dtype) if self.can_quantize else self.dtype
        thinned = run.thinned if isinstance(run, Runnable) else _whole(self.model)
        try:
            half = self.sharding.dtype(recipe) if self.sharding else None
            model = MetaModel(thinned, recipe, kind, dtype, loaded=self.loaded, half=half)
        except Exception as error:  # noqa: BLE001 - whatever this stack's libraries say
            reason = _said(error)
            return MemoryVariant(one.name, one.changes, (_missing("everything", reason, error),))
        parts = [*_weights(model, self.sharding), self._state(model)]
        if self.sharding is not None:
            parts += self.sharding.parts(model)
        if isinstance(run, str):
            parts.append(_missing(memory_parts.ACTIVATIONS, run))
        else:
            parts += self._step(model, run, recipe)
        low, middle, high = CONTEXT
        parts.append(
            MemoryPart("CUDA context", middle, "the driver and its libraries", "assumed", low, high)
        )
        return MemoryVariant(one.name, one.changes, tuple(parts))

    def _state(self, model: MetaModel) -> MemoryPart:
        trained = model.trainable()
        if self.sharding is not None:
            trained = self.sharding.optimized(trained)
        count = sum(int(tensor.numel()) * times for tensor, times in trained)
        name = "optimizer state"
        try:
            size = optimizer.state_bytes(trained, self.optimizer)
        except Exception as error:  # noqa: BLE001 - not installed, or not made for meta
            return _missing(name, f"{self.optimizer}: {_said(error)}", error)
        each = size / count if count else 0
        formula = f"{self.optimizer}: {each:.4g} bytes for each of {count:,} trained weights"
        return MemoryPart(name, size, formula, "asked")

    def _step(self, model: MetaModel, run: Runnable, recipe: Recipe) -> list[MemoryPart]:
        wanted = recipe.mixed_precision
        if self.sharding is not None and self.sharding.dtype(recipe):
            wanted = None  # the model itself is in half precision
        try:
            step = model.step(run.batch.inputs, run.batch.loss_of, wanted)
        except Exception as error:  # noqa: BLE001 - whatever the model's code says
            return [_missing(memory_parts.ACTIVATIONS, _said(error), error)]
        if step.spread:
            self._assume("tokens are spread evenly over the experts")
        low, reserve, high = (int(share * step.peak) for share in RESERVE)
        how = f" under autocast in {wanted}" if wanted is not None else ""
        return [
            _measured(memory_parts.ACTIVATIONS, step.kept,
                      f"alive when the output head is reached{how}",
                      at_most=bool(recipe.get("use_liger_kernel"))),
            _measured(memory_parts.LOSS_AND_BACKWARD, step.peak - step.kept,
                      f"most that is alive at once, beyond the activations{how}",
                      at_most=_without_logits(recipe)),
            MemoryPart("allocator", reserve, f"{RESERVE[1]:.0%} of the two above, at most "
                 f"{RESERVE[2]:.0%}{_recast(model)}", "assumed", low, high + model.recast),
            *_of_eight_bits(step, recipe),
        ]  # fmt: skip

    def _assume(self, text: str) -> None:
        if text not in self.assumptions:
            self.assumptions.append(text)


def _weights(model: MetaModel, sharding: Sharding | None) -> list[MemoryPart]:
    """Weights, their constants, the trained ones and a gradient for each of these."""
    sizes, gradients = shared_sizes(model, sharding)
    names = {
        "quantized": memory_parts.QUANTIZED_WEIGHTS,
        "constants": memory_parts.QUANTIZATION_CONSTANTS,
        "plain": memory_parts.OTHER_WEIGHTS,
        "adapters": "trained weights",
    }
    parts = [
        MemoryPart(name, sizes[key].bytes, sizes[key].words(), "counted")
        for key, name in names.items()
        if sizes[key].bytes or key in ("plain", "adapters")
    ]
    if sharding is not None:
        whole = model.weights()["quantized"].bytes
        parts = [sharding.quantized(part, whole) for part in parts]
    formula = "one for each trained weight, in its dtype"
    return [*parts, MemoryPart("gradients", gradients, formula, "counted")]


def _recast(model: MetaModel) -> str:
    """Blocks that are free, but may lie in pieces where something larger is asked for."""
    size = f"{model.recast / GIB:.2f} GiB"
    text = f", and {size}: the two largest weights that were cast to float32"
    return text if model.recast else ""


def _without_logits(recipe: Recipe) -> bool:
    """Whether a kernel computes the loss from the weight of the output head, piece by piece."""
    return bool(recipe.get("use_liger_kernel") or recipe.get("cut_cross_entropy"))


def _measured(name: str, size: int, formula: str, *, at_most: bool = False) -> MemoryPart:
    """``at_most``: it was measured without kernels of the recipe that keep less."""
    low, high = int(size * (1 - TOLERANCE)), int(size * (1 + TOLERANCE))
    if at_most:
        low, formula = 0, f"{formula}; less with the fused kernels that the recipe asks for"
    return MemoryPart(name, size, formula, "measured", low, high)


def _of_eight_bits(step: Step, recipe: Recipe) -> list[MemoryPart]:
    """What hangs on the numbers, or on the training loop; only bounds are known of either."""
    inputs = step.eight_bit_inputs
    if not inputs:
        return []
    parts = [
        MemoryPart(
            memory_parts.OUTLIERS, 0,
            "each 8-bit layer keeps the columns of its input with a value above the threshold once "
            "more, at most all: a matter of the numbers", "measured", 0, inputs,
        )
    ]  # fmt: skip
    if recipe.mixed_precision is None:  # else the Trainer is asked for it
        longer = step.held_longer + inputs if step.held_longer else 0
        parts.append(
            MemoryPart(
                memory_parts.HELD, 0,
                "nothing in the Trainer; where the loop still has the last loss while the next "
                "forward runs, the inputs of the 8-bit layers of two steps", "measured", 0, longer,
            )
        )  # fmt: skip
    return parts


def _missing(name: str, reason: str, error: BaseException | None = None) -> MemoryPart:
    missing: Source = "missing"
    remedy = missing_remedy(error) if error is not None else None
    return MemoryPart(name, None, reason, missing, remedy=remedy)


def _whole(model: Any) -> Any:
    from lora_doctor.model.meta_copy import meta_copy

    return meta_copy(model)


def _dtype(recipe: Recipe, native: str | None) -> str:
    wanted = recipe.get("dtype")
    if wanted in (None, "auto"):
        return native or "float32"
    return str(wanted)


def _batch_size(recipe: Recipe) -> _Choice:
    chosen = recipe.get("per_device_train_batch_size")
    if chosen:
        return _Choice(int(chosen), "the recipe")
    from transformers import TrainingArguments

    default = TrainingArguments.__dataclass_fields__["per_device_train_batch_size"].default
    return _Choice(int(default), "the Trainer's default; the recipe says none")


def _length(recipe: Recipe) -> _Choice:
    chosen = recipe.get("max_length")
    if chosen:
        return _Choice(int(chosen), "the recipe")
    return _Choice(LENGTH, "TRL's default; the recipe says none")


def _optimizer(recipe: Recipe) -> str:
    return str(recipe.get("optim") or optimizer.ADAMW[0])


def _foreign_quantization(config: Any, recipe: Recipe) -> str | None:
    """Who quantized the checkpoint, when it is not bitsandbytes and the recipe leaves it so."""
    values = checkpoint_quantization.other_than_bitsandbytes(config, recipe)
    return None if values is None else str(values.get("quant_method", "another method"))[:40]


def _said(error: BaseException) -> str:
    seen = library_error(error)
    return f"{seen.type}: {seen.message}"[:200]
