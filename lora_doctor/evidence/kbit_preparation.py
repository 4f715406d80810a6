"""Whether PEFT's preparation for k-bit training is what breaks a quantized model.

It casts what is not quantized to float32. A forward that goes by the dtype of the config then mixes
two dtypes (PaliGemma in transformers 4.57). Torch is imported inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lora_doctor.contract.recorder import Recorder
from lora_doctor.model import contract_batches, training_setup
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.error_report import ErrorReport
from lora_doctor.results.verification import Verification
from lora_doctor.text import one_line, where


def judged(
    result: Verification, load: Callable[[], Any], recipe: Recipe, batch: Any | None, dtype: str
) -> Verification:
    """An undetermined verification of a quantized model, or a failed one where the model as it is
    loaded does run.

    Args:
        result: without the base model's losses: it did not run after the preparation.
        load: gives the quantized model anew, not prepared.
        batch: on the device, in float32; made for the loaded model where there is none.
        dtype: of the inputs that a script may make of it.
    """
    from lora_doctor.tiny_model.batch.make_batch import make_batch
    from lora_doctor.tiny_model.batch.result import BatchError

    model = load()
    training_setup.keep_quantized_layout(model)
    if batch is None:
        try:
            batch = make_batch(model).to(result.device)
        except BatchError:
            return result
    if _objection(model, batch, dtype) is not None:
        return result
    del model
    error = _objection(training_setup.for_kbit_training(load(), recipe), batch, dtype)
    if error is None:
        return result
    recorder = Recorder()
    recorder.add("builds", True, result.model_parameters, "an nn.Module", result.model_class)
    broken = ErrorReport(type(error).__name__, one_line(error, 300), where(error))
    cause = RuntimeError(
        "the quantized model runs as it is loaded, and not after prepare_model_for_kbit_training: "
        f"{broken.type}: {broken.message}"
    )
    recorder.fail("forward", cause.with_traceback(error.__traceback__))
    checks = recorder.checks("not run: forward failed")
    return replace(
        result,
        outcome="failed",
        checks=checks,
        failure=recorder.failure,
        reason="",
        obstacle=None,
        base_error=None,
        error_once_prepared=broken,
    )


def _objection(model: Any, batch: Any, dtype: str) -> Exception | None:
    """What the model raises on the batch in training mode, its inputs in float32 and in half."""
    import torch

    from lora_doctor.contract.measure import loss_of

    model.train()
    last: Exception | None = None
    for one in (copy.deepcopy(batch), contract_batches.cast(copy.deepcopy(batch), dtype)):
        try:
            with torch.no_grad():
                loss_of(model, one)
        except Exception as error:  # noqa: BLE001 - what it is, is the question
            last = error
        else:
            return None
    return last
