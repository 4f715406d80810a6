"""A batch in the dtypes in which it reaches a model that is in half precision.

Feature extractors and image processors return float32, and a Trainer casts nothing. Most vision
towers cast what they get to their own dtype, most audio models do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lora_doctor.contract.measure import evaluating
from lora_doctor.contract.precision import Precision
from lora_doctor.model import contract_batches
from lora_doctor.nn import dtypes
from lora_doctor.results.note import Note
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.text import one_line
from lora_doctor.tiny_model.modalities import AUDIO, IMAGE, VIDEO

_FEATURES = {
    name
    for modality in (IMAGE, AUDIO, VIDEO)
    for name in (*modality.taken_by, *modality.carried_by)
}


def as_sent(model: Any, batch: Any, dtype: str, precision: Precision, notes: list[Note]) -> Any:
    """The batch with features in float32 where the model takes them so, else in its own dtype, as
    a collator of one's own may cast them.

    Args:
        model: without adapters, as it is trained.
        batch: made here, on the model's device, in float32.
        dtype: of the model's weights, by name.
        precision: how the recipe computes a step.
        notes: gets one, ``features-cast``, where a step fails on features in float32.
    """
    features = [name for name in batch.inputs if name in _FEATURES and _is_float32(batch, name)]
    cast = contract_batches.cast(replace(batch, inputs=dict(batch.inputs)), dtype)
    if dtype not in dtypes.HALF or not features:
        return cast
    kept = replace(cast, inputs={**cast.inputs, **{name: batch.inputs[name] for name in features}})
    error = _raised(model, kept, Precision(precision.device))
    if error is None:
        return kept
    if precision.autocast and _raised(model, kept, precision) is None:
        return cast  # what is measured without autocast is measured on these
    if _raised(model, cast, precision) is None:
        said = f"{type(error).__name__}: {one_line(error, 200)}"
        text = f"{', '.join(features)} cast to {dtype}; in float32, as processors return them: "
        notes.append(Note("features-cast", text + said, said))
    return cast


def _is_float32(batch: Any, name: str) -> bool:
    return str(getattr(batch.inputs[name], "dtype", "")) == "torch.float32"


def _raised(model: Any, batch: Any, precision: Precision) -> Exception | None:
    """What a forward raises on the batch; ``None`` where it runs."""
    try:
        with evaluating(model), precision.forward():
            model(**batch.inputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return error
    return None
