"""A batch of the size that will be trained, for the model on the meta device.

``length`` is the whole length, places of pictures and sounds included; each sample has one picture
or sound of the model's own size. Where the size of a picture is free, :data:`GRID_SIDE` says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_doctor.memory_plan.data_dependent_ops import KnownValues, UnknownValue, running_on_meta
from lora_doctor.memory_plan.gpu_kernels import kernels_of_a_gpu
from lora_doctor.results.note import Note
from lora_doctor.text import one_line
from lora_doctor.tiny_model.batch.arguments import make_arguments
from lora_doctor.tiny_model.batch.config_entries import ConfigEntries
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.errors.forward_errors import correct
from lora_doctor.tiny_model.batch.features import count_placeholders
from lora_doctor.tiny_model.batch.first_guess import first_draft
from lora_doctor.tiny_model.batch.labels import candidates
from lora_doctor.tiny_model.batch.loss import batch_loss, output_loss
from lora_doctor.tiny_model.batch.result import Batch, BatchError
from lora_doctor.tiny_model.batch.run_forward import run_forward
from lora_doctor.tiny_model.batch.signature import forward_parameters, modality_choices

#: Patches along one side of a picture whose size is free: 448 pixels where a patch has 14.
GRID_SIDE = 32
#: The largest side, in pixels, that is taken from a config.
LARGEST_IMAGE_SIDE = 1024
#: Text that is left where pictures take up nearly all of the length.
LEAST_TEXT = 16
ATTEMPTS = 8


@dataclass
class PlannedBatch:
    """``inputs``: CPU tensors. ``length``: tokens of a sample, 0 where the model reads none.
    ``left_out``: kinds of input (``image``) that the model can take and objected to."""

    inputs: dict[str, Any]
    length: int
    loss: str
    left_out: tuple[str, ...] = ()
    objection: str = ""

    def loss_of(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        return batch_loss(model, Batch(dict(inputs), [], self.loss))

    @property
    def size(self) -> int:
        """Samples, by the first of all shapes."""
        return next((shape[0] for shape in self.shapes.values() if shape), 0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(value.shape)
            for name, value in self.inputs.items()
            if hasattr(value, "shape")
        }


def planned_batch(model: Any, size: int, length: int, dtype: str) -> PlannedBatch:
    """A batch of ``size`` samples of ``length`` tokens that this model on meta accepts.

    ``model``: in float32; it is cast to ``dtype``.

    Raises:
        BatchError: it objects to every draft; the reason is the last objection.
    """
    parameters = forward_parameters(model)
    reason = f"{type(model).__name__}.forward takes no input that is known"
    choices = modality_choices(parameters, "auto", model)
    with kernels_of_a_gpu(), running_on_meta(KnownValues()):
        for modalities in choices:
            draft = first_draft(model, parameters, modalities, batch_size=size, seq_len=length)
            _full_size(draft)
            try:
                batch = _batch_of_length(
                    draft, min(length, places(model, draft.entries) or length), dtype
                )
            except (BatchError, UnknownValue) as error:
                reason = str(error) if modalities is choices[0] else reason
                continue
            left = tuple(sorted(choices[0] - modalities))
            return replace(batch, left_out=left, objection=reason if left else "")
    raise BatchError(reason)


def places(model: Any, entries: ConfigEntries) -> int:
    """Tokens for which the model has learnt positions; 0 where it computes them for any length."""
    from torch import nn

    listed = entries.number(
        "max_position_embeddings", "n_positions", "max_target_positions", "max_sequence_length"
    )
    rows = (one.num_embeddings for one in model.modules() if isinstance(one, nn.Embedding))
    # A few rows more are for padding and offsets.
    return listed if listed and any(0 <= count - listed <= 4 for count in rows) else 0


def _full_size(draft: Draft) -> None:
    """Images of the model's own size, where a tiny model would do with less."""
    own = draft.entries.number(
        "image_size", "img_size", "input_size", within=r"vision|image|visual|backbone|^$"
    )
    if 0 < own <= LARGEST_IMAGE_SIDE:
        draft.image.size = own
    merge = draft.entries.number("spatial_merge_size", "merge_size", default=1)
    draft.image.least_grid_side = GRID_SIDE // merge * merge


def _cast(inputs: dict[str, Any], dtype: str) -> dict[str, Any]:
    """``inputs`` with floating tensors in ``dtype``."""
    import torch

    return {
        name: value.to(getattr(torch, dtype))
        if hasattr(value, "dtype") and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }


def _batch_of_length(draft: Draft, length: int, dtype: str) -> PlannedBatch:
    """A batch of ``length`` tokens that the model accepts in ``dtype``."""
    import torch

    draft.model.float()
    draft.seq_len = length
    count_placeholders(draft)
    draft.model.to(getattr(torch, dtype))
    inputs, outputs = _accepted(draft, dtype)
    ids = inputs.get("input_ids")
    if ids is not None and ids.shape[1] != length:
        draft.seq_len = max(LEAST_TEXT, draft.seq_len + length - int(ids.shape[1]))
        inputs, outputs = _accepted(draft, dtype)
        ids = inputs.get("input_ids")
    tokens = 0 if ids is None else int(ids.shape[1])
    for kind, more in candidates(draft, inputs, outputs):
        for stretched in _stretched(more, inputs, length):
            full = {k: v for k, v in {**inputs, **stretched}.items() if v is not None}
            try:
                loss = output_loss(run_forward(draft.model, draft.with_own_names(full)))
            except Exception as error:  # noqa: BLE001 - not the kind of label for this head
                message = one_line(error)
                draft.notes.append(Note("objection", message, message))
                continue
            if loss is not None:
                return PlannedBatch(draft.with_own_names(full), tokens, kind)
    return PlannedBatch(draft.with_own_names(inputs), tokens, "surrogate")


def _accepted(draft: Draft, dtype: str) -> tuple[dict[str, Any], Any]:
    """Inputs that the forward takes, and what it answers."""
    last = ""
    for _ in range(ATTEMPTS):
        inputs = _cast(make_arguments(draft), dtype)
        if not inputs:
            raise BatchError(f"{type(draft.model).__name__}.forward: no argument could be made")
        try:
            return inputs, run_forward(draft.model, draft.with_own_names(inputs))
        except UnknownValue:
            raise
        except Exception as error:  # noqa: BLE001 - the objection is what we work with
            last = one_line(error)
            if not correct(draft, inputs, error):
                break
    raise BatchError(last)


def _stretched(more: dict[str, Any], inputs: dict[str, Any], length: int) -> list[dict[str, Any]]:
    """Targets of a decoder as long as the input; shorter where it has no places for so many."""
    labels: Any = more.get("labels")
    ids: Any = inputs.get("input_ids")
    own = labels is not None and labels.dim() == 2 and not labels.is_floating_point()
    if not own or (ids is not None and tuple(labels.shape) == tuple(ids.shape)):
        return [more]
    short = int(labels.shape[1])
    result = []
    for count in dict.fromkeys((max(length, short), short)):
        longer = {**more, "labels": _repeated(labels, count)}
        start = inputs.get("decoder_input_ids")
        if start is not None and "decoder_input_ids" not in more and start.shape == labels.shape:
            longer["decoder_input_ids"] = _repeated(start, count)
        result.append(longer)
    return result


def _repeated(ids: Any, count: int) -> Any:
    import torch

    return torch.cat([ids] * -(-count // ids.shape[1]), 1)[:, :count]
