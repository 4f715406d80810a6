"""The batches of the training contract: the user's, or made to reach every tower of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_doctor.model.error_reports import model_error
from lora_doctor.nn.dtypes import HALF, dtype_of
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.note import Note
from lora_doctor.tiny_model.modalities import carried


class NoBatch(Exception):
    """No batch could be made that the model takes. ``raised``: what its forward answered."""

    def __init__(self, reason: str, raised: ErrorReport | None = None) -> None:
        super().__init__(reason)
        self.raised = raised


def make_batches(
    model: Any, given: list[dict[str, Any]] | None, first: Any, notes: list[Note]
) -> list[Any]:
    """Batches that reach every tower: the user's, or one with all inputs and each kind alone.

    Args:
        model: without adapters.
        given: the batches that a factory came with.
        first: a batch that is already known to work, or ``None``.
        notes: is told which kinds could not be made.

    Raises:
        NoBatch: none could be made; the text is the reason.
    """
    from lora_doctor.tiny_model.batch.result import Batch

    if given:
        return [_given_batch(inputs, Batch) for inputs in given]
    if first is None:
        first = _first_batch(model, notes)
    if first.left_out:
        kinds_left = " or ".join(first.left_out)
        reasons = (note.text for note in first.notes if note.kind == "input-left-out")
        why = next(reasons, "it is not known how")[:300]
        text = f"no batch with {kinds_left} was found, what takes it was not run: {why}"
        notes.append(Note("not-fed", text, why))
    return [first, *_batches_of_one_kind(model, first, notes)]


def _first_batch(model: Any, notes: list[Note]) -> Any:
    """A batch with every kind of input that the model takes.

    Raises:
        NoBatch: none could be made.
    """
    from lora_doctor.tiny_model.batch.make_batch import make_batch
    from lora_doctor.tiny_model.batch.result import BatchError

    try:
        return make_batch(model)
    except BatchError as error:
        untried = _untried_batch(model)
        if untried is None:
            raise NoBatch(f"no batch could be made: {error.reason}", _raised(error)) from error
        text = f"the batch was not tried beforehand: {error.reason}"
        notes.append(Note("step", text, error.reason))
        return untried


def _batches_of_one_kind(model: Any, first: Any, notes: list[Note]) -> list[Any]:
    """Beside a batch of several kinds of input, one of each kind alone where there can be one."""
    from lora_doctor.tiny_model.batch.make_batch import make_batch
    from lora_doctor.tiny_model.batch.result import BatchError

    kinds = {frozenset(first.modality)}
    batches: list[Any] = []
    if kinds == {frozenset({"text"})}:
        return batches
    for modality in ("image", "audio", "text"):
        if modality != "text" and modality in first.modality:
            continue
        try:
            batch = make_batch(model, modality=modality)
        except BatchError as error:
            if modality in first.modality:
                text = f"no {modality}-only batch: {error.reason}"
                notes.append(Note("step", text, error.reason))
            continue
        if frozenset(batch.modality) not in kinds:
            kinds.add(frozenset(batch.modality))
            batches.append(batch)
    return batches


def _raised(error: Exception) -> ErrorReport | None:
    """What a forward raised, where that is why no batch could be made."""
    behind = error.__cause__
    return model_error(behind) if behind is not None else None


def _untried_batch(model: Any) -> Any:
    """A batch that nobody has run, for a half-precision model whose outputs are no numbers.

    Overflow of the base model is an answer about the recipe's dtype: the contract must see it.
    """
    from lora_doctor.tiny_model.batch.make_batch import make_batch
    from lora_doctor.tiny_model.batch.result import BatchError

    if dtype_of(model) not in HALF:
        return None
    try:
        return make_batch(model, run=False)
    except BatchError:
        return None


def missing_inputs(model: Any, batches: Sequence[Any]) -> tuple[str, ...]:
    """Kinds of input that the model takes and that no batch has."""
    from lora_doctor.tiny_model.batch.signature import forward_parameters, modality_choices

    choices = modality_choices(forward_parameters(model), "auto", model)
    had = {kind for batch in batches for kind in batch.modality}
    return tuple(sorted(choices[0] - had)) if choices else ()


def _given_batch(inputs: Mapping[str, Any], batch_class: Any) -> Any:
    labels = [name for name in inputs if "label" in name or name == "start_positions"]
    return batch_class(
        dict(inputs), carried(inputs), labels[0] if labels else "the model's own", []
    )


def cast(batch: Any, dtype: str) -> Any:
    """The batch with floating inputs in a half dtype, as a script's ``.to(device, dtype)``."""
    import torch

    if dtype not in HALF:
        return batch
    wanted = getattr(torch, dtype)
    for name, value in batch.inputs.items():
        if isinstance(value, torch.Tensor) and value.dtype is torch.float32:
            batch.inputs[name] = value.to(wanted)
    return batch
