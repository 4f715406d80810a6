"""A training batch for any model: from its signature and config, corrected by what it raises."""

from __future__ import annotations

from typing import Any

from lora_doctor.results.note import Note, NoteKind
from lora_doctor.tiny_model.batch.arguments import can_disable_cache, make_arguments
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.errors.forward_errors import correct
from lora_doctor.tiny_model.batch.features import count_placeholders
from lora_doctor.tiny_model.batch.first_guess import first_draft
from lora_doctor.tiny_model.batch.labels import candidates
from lora_doctor.tiny_model.batch.loss import output_loss, surrogate_loss
from lora_doctor.tiny_model.batch.result import Batch, BatchError
from lora_doctor.tiny_model.batch.run_forward import (
    returns_own_cache,
    run_forward,
    trainer_disables_cache,
)
from lora_doctor.tiny_model.batch.signature import (
    forward_parameters,
    missing_forward,
    modality_choices,
)
from lora_doctor.tiny_model.batch.values.makers import MAKERS
from lora_doctor.tiny_model.modalities import carried
from lora_doctor.tiny_model.model_error import ModelError

MAX_ATTEMPTS = 12


def make_batch(
    model: Any,
    *,
    batch_size: int = 2,
    modality: str = "auto",
    seq_len: int = 16,
    seed: int = 0,
    run: bool = True,
    left_out: int | None = None,
) -> Batch:
    """Make inputs that `model.forward` accepts, with labels where it takes them.

    Args:
        model: an `nn.Module`; transformers models tell most by signature and `config`.
        batch_size: samples; with images or audio, each sample has one.
        modality: "auto" takes all that the model can, else only "text", "image" or "audio".
        seq_len: text tokens per sample, without the placeholders of images and audio.
        seed: of tokens and values.
        run: try it (no gradients, random state untouched) and correct it by the errors.
        left_out: only batches that leave out fewer modalities than this; None tries all.

    Raises:
        BatchError: the model raises an error for every draft.
    """
    parameters = forward_parameters(model)
    reason = missing_forward(model) or (
        f"{type(model).__name__}.forward takes no input that is known"
    )
    notes: list[Note] = []
    forward_errors: list[ModelError] = []
    raised: tuple[BaseException, ...] = ()
    kind: NoteKind = "step"
    cause: BaseException | None = None
    choices = modality_choices(parameters, modality, model)
    for modalities in choices:
        if left_out is not None and len(choices[0] - modalities) >= left_out:
            continue
        draft = first_draft(
            model, parameters, modalities, batch_size=batch_size, seq_len=seq_len, seed=seed
        )
        draft.notes = notes
        if "return_loss" in parameters:  # a dual encoder reads a text at its last token
            draft.tokens.last_id = draft.end_of_sequence()
        try:
            batch = _tried(draft) if run else _untried(draft)
        except BatchError as error:
            forward_errors += error.forward_errors
            if modalities is choices[0]:  # the error for the fullest batch tells most
                reason, raised, cause = error.reason, error.raised, error.__cause__
                kind = "input-left-out"
            notes = [Note(kind, f"{'+'.join(sorted(modalities))}: {reason}", reason)]
            continue
        batch.left_out = sorted(choices[0] - modalities)
        batch.forward_errors = forward_errors
        return batch
    raise BatchError(reason, forward_errors, raised) from cause


def _untried(draft: Draft) -> Batch:
    """The likeliest batch, not run."""
    count_placeholders(draft)
    inputs = make_arguments(draft)
    for kind, labels in candidates(draft, inputs, None):
        return _batch(draft, {**inputs, **labels}, kind)
    return _batch(draft, inputs, "surrogate")


def _tried(draft: Draft) -> Batch:
    """A batch that was run, with a finite loss.

    Raises:
        BatchError: forward raises whatever is changed, or its outputs are not finite.
    """
    count_placeholders(draft)
    inputs, outputs = _accepted(draft)
    if returns_own_cache(outputs) and can_disable_cache(draft) and trainer_disables_cache():
        draft.extra["use_cache"] = False
        draft.notes.append(Note("step", "use_cache=False (as the Trainer has it)"))
        inputs = make_arguments(draft)
    labelled = _with_labels(draft, inputs, outputs)
    if labelled is not None:
        return labelled
    if _is_finite(output_loss(outputs)):  # masked autoencoders need nothing but their inputs
        return _batch(draft, inputs, "its own")
    batch = _batch(draft, inputs, "surrogate")
    if not _is_finite(surrogate_loss(outputs)):
        raise BatchError(f"{_forward_name(draft)}: the outputs are not finite")
    return batch


def _accepted(draft: Draft) -> tuple[dict[str, Any], Any]:
    """Inputs that forward takes, and its outputs; `draft` is corrected on the way.

    Raises:
        BatchError: there are none; with what forward raised at last and before the first guess.
    """
    last: Exception | None = None
    for _ in range(MAX_ATTEMPTS):
        inputs = make_arguments(draft)
        layouts = draft.layouts()
        if not inputs:
            raise BatchError(f"{_forward_name(draft)}: no argument could be made")
        try:
            outputs = run_forward(draft.model, draft.with_own_names(inputs))
        except Exception as error:  # noqa: BLE001 - models raise anything for inputs they refuse
            last = error
            if not correct(draft, inputs, error):
                raise _refused(draft, error) from (draft.first_error or error)
            if draft.layouts() != layouts:
                count_placeholders(draft, again=True)
            continue
        if outputs is None:
            raise BatchError(f"{_forward_name(draft)}: it returns nothing")
        return inputs, outputs
    assert last is not None  # every attempt has ended with an error
    said = ModelError.of(last, f"{_forward_name(draft)}: after {MAX_ATTEMPTS} attempts: {{}}")
    raise BatchError(said.told, [said]) from last


def _refused(draft: Draft, last: BaseException) -> BatchError:
    first = draft.first_error or last
    said = ModelError.of(first, f"{_forward_name(draft)}: {{}}")
    if first is last:
        return BatchError(said.told, [said], (last,))
    return BatchError(said.told, [said, ModelError.of(last)], (last, first))


def _with_labels(draft: Draft, inputs: dict[str, Any], outputs: Any) -> Batch | None:
    """The batch with the first labels that give a finite loss; None where none do."""
    for kind, labels in candidates(draft, inputs, outputs):
        full = {k: v for k, v in {**inputs, **labels}.items() if v is not None}
        try:
            loss = output_loss(run_forward(draft.model, draft.with_own_names(full)))
        except Exception as error:  # noqa: BLE001 - not the kind of label for this head
            objection = ModelError.of(error, f"{kind} tried: {{}}")
            draft.objections.append(objection)
            draft.notes.append(Note("objection", objection.told, str(ModelError.of(error))))
            continue
        if _is_finite(loss):
            # Beside labels alone it raised: PaliGemma wants the marks of what is to be answered.
            beside = {name for name in labels if name in MAKERS and name not in inputs}
            draft.include |= beside - draft.sent
            return _batch(draft, full, kind)
        reason = "no loss" if loss is None else "loss not finite"
        draft.notes.append(Note("step", f"{kind} tried: {reason}", reason))
    return None


def _is_finite(loss: Any) -> bool:
    """Whether there is a loss and it is a finite number."""
    return loss is not None and bool(loss.isfinite().all())


def _batch(draft: Draft, inputs: dict[str, Any], loss: str) -> Batch:
    return Batch(
        draft.with_own_names(inputs),
        carried(inputs),
        loss,
        list(draft.notes),
        objections=list(draft.objections),
        needs_no_cache=draft.cache_error is not None and not trainer_disables_cache(),
        added=tuple(sorted(draft.own_names.get(n, n) for n in draft.include & inputs.keys())),
        one_sample=draft.one_sample,
    )


def _forward_name(draft: Draft) -> str:
    return f"{type(draft.model).__name__}.forward"
