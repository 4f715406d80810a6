"""A training batch for any model: from its signature and config, corrected by its objections."""

from __future__ import annotations

import inspect
from typing import Any

from lora_doctor.results.note import Note, NoteKind
from lora_doctor.text import error_summary
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.features import count_features
from lora_doctor.tiny_model.batch.forward_errors import answer
from lora_doctor.tiny_model.batch.loss import _loss_of, surrogate_loss
from lora_doctor.tiny_model.batch.names import common_names, has_tower, renamed
from lora_doctor.tiny_model.batch.result import Batch, BatchError
from lora_doctor.tiny_model.batch.settings import Settings

MAX_ATTEMPTS = 12


def make_batch(
    model: Any,
    *,
    batch_size: int = 2,
    modality: str = "auto",
    seq_len: int = 16,
    seed: int = 0,
    with_labels: bool = True,
    run: bool = True,
    left_out: int | None = None,
) -> Batch:
    """Make inputs that `model.forward` accepts.

    Args:
        model: an `nn.Module`; transformers models tell most by signature and `config`.
        batch_size: samples; with images or audio, each sample has one.
        modality: "auto" takes all that the model can, else only "text", "image" or "audio".
        seq_len: text tokens per sample, without the placeholders of images and audio.
        seed: of tokens and values.
        with_labels: add labels of the right kind where forward takes them.
        left_out: only batches that leave out fewer kinds of input than this; None tries all.
        run: try it (no gradients, random state untouched) and answer objections.

    Raises:
        BatchError: the model objects to every draft.
    """
    parameters = forward_parameters(model)
    reason = _without_forward(model) or (
        f"{type(model).__name__}.forward takes no input that is known"
    )
    notes: list[Note] = []
    objections: list[str] = []
    raised: tuple[BaseException, ...] = ()
    kind: NoteKind = "step"
    cause: BaseException | None = None
    choices = modality_choices(parameters, modality, model)
    for modalities in choices:
        if left_out is not None and len(choices[0] - modalities) >= left_out:
            continue
        draft = Draft(
            model,
            parameters,
            Settings(getattr(model, "config", None)),
            batch_size,
            seq_len,
            seed,
            modalities,
            notes=notes,
        )
        draft.prepare()
        if "return_loss" in parameters:  # a dual encoder reads a text at its last token's place
            draft.last_id = draft.settings.number("eos_token_id")
        try:
            batch = _settle(draft, with_labels, run)
        except BatchError as error:
            objections += error.objections
            if modalities is choices[0]:  # the objection to the fullest batch tells most
                reason, raised, cause = error.reason, error.raised, error.__cause__
                kind = "input-left-out"
            notes = [Note(kind, f"{'+'.join(sorted(modalities))}: {reason}", reason)]
            continue
        batch.left_out = sorted(choices[0] - modalities)
        batch.objections = objections
        return batch
    raise BatchError(reason, objections, raised) from cause


def _without_forward(model: Any) -> str:
    """Why a model that has no forward cannot be trained as it is; empty where it has one."""
    from torch.nn import Module

    if type(model).forward is not Module.forward:
        return ""
    parts = [
        name for name, part in model.named_children() if type(part).forward is not Module.forward
    ]
    return (
        f"{type(model).__name__} has no forward, it only generates; its parts "
        f"({', '.join(parts[:6])}) are trained one by one"
    )


def forward_parameters(model: Any) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(model.forward).parameters)
    named = [p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    # a wrapper that only passes on (PeftModel, PeftMixedModel) takes what it wraps takes
    if hasattr(model, "get_base_model"):
        inner = model.get_base_model()
    else:
        inner = getattr(getattr(model, "base_model", None), "model", None)
    return parameters if named or inner is None else forward_parameters(inner)


def modality_choices(
    parameters: dict[str, inspect.Parameter], modality: str, model: Any = None
) -> list[set[str]]:
    """Sets of modalities to try, the fullest first.

    Videos stand beside images only where `model` has a tower of their own for them.
    """
    names = set(renamed(parameters, common_names(parameters)))
    can = set()
    if names & {"input_ids", "qformer_input_ids"}:
        can.add("text")
    if names & {"pixel_values", "flattened_patches"}:
        can.add("image")
    if "pixel_values_videos" in names and ("image" not in can or has_tower(model, "video")):
        can.add("video")
    if names & {"input_features", "input_values"}:
        can.add("audio")
    if modality != "auto":
        # an image model that reads text needs its text too
        wanted = {modality} if modality == "text" else {modality, "text"} & can
        return [wanted] if modality in can else []
    # Without any of these (a time series), what forward cannot do without is made up.
    choices = [can] if can or _required(parameters) else []
    for less in (can - {"video"}, can - {"audio"}, can - {"image", "video"}, can & {"text"}):
        if less and less not in choices:
            choices.append(less)
    return choices


def _required(parameters: dict[str, inspect.Parameter]) -> list[str]:
    """Names of the arguments without a default value that are annotated as tensors."""
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and "Tensor" in str(parameter.annotation)
    ]


def _settle(draft: Draft, with_labels: bool, run: bool) -> Batch:
    """Correct `draft` until the model takes it, then add labels."""
    from lora_doctor.tiny_model.batch.labels import candidates

    name = type(draft.model).__name__
    count_features(draft)
    if not run:
        inputs = draft.make()
        for kind, more in candidates(draft, inputs, None) if with_labels else ():
            return _batch(draft, {**inputs, **more}, kind)
        return _batch(draft, inputs, "surrogate")
    outputs = None
    last = ""
    raised: Exception | None = None
    for _ in range(MAX_ATTEMPTS):
        inputs = draft.make()
        shapes = draft.shapes()
        if not inputs:
            raise BatchError(f"{name}.forward: no argument could be made")
        try:
            outputs = _forward(draft.model, draft.own(inputs))
            break
        except Exception as error:  # noqa: BLE001 - the objection is what we work with
            last, raised = error_summary(error), error
            if not answer(draft, inputs, error):
                first = draft.blind or error
                said = f"{name}.forward: {error_summary(first)}"
                heard = (error, first) if first is not error else (error,)
                raise BatchError(said, list(dict.fromkeys((said, last))), heard) from first
            if draft.shapes() != shapes:
                count_features(draft, again=True)
    if outputs is None:
        raise BatchError(f"{name}.forward: after {MAX_ATTEMPTS} attempts: {last}") from raised
    if _state_of_its_own(outputs) and draft.can_do_without_cache() and _trained_without_cache():
        draft.extra["use_cache"] = False
        draft.notes.append(Note("step", "use_cache=False (as the Trainer has it)"))
        inputs = draft.make()
    if not with_labels:
        return _batch(draft, inputs, "surrogate")
    for kind, more in candidates(draft, inputs, outputs):
        full = {k: v for k, v in {**inputs, **more}.items() if v is not None}
        try:
            loss = _loss_of(_forward(draft.model, draft.own(full)))
        except Exception as error:  # noqa: BLE001 - not the kind of label for this head
            told = error_summary(error)
            draft.notes.append(Note("objection", f"{kind} tried: {told}", told))
            continue
        if loss is not None and bool(loss.isfinite().all()):
            return _batch(draft, full, kind)
        told = "no loss" if loss is None else "loss not finite"
        draft.notes.append(Note("step", f"{kind} tried: {told}", told))
    own = _loss_of(outputs)  # masked autoencoders need nothing but their inputs
    if own is not None and bool(own.isfinite().all()):
        return _batch(draft, inputs, "its own")
    batch = _batch(draft, inputs, "surrogate")
    loss = surrogate_loss(outputs)
    if not bool(loss.isfinite().all()):
        raise BatchError(f"{name}.forward: the outputs are not finite")
    return batch


def _batch(draft: Draft, inputs: dict[str, Any], loss: str) -> Batch:
    kinds = []
    groups = {
        "text": ("input_ids", "decoder_input_ids", "qformer_input_ids"),
        "image": ("pixel_values", "flattened_patches"),
        "audio": ("input_features", "input_values"),
        "video": ("pixel_values_videos",),
    }
    for kind, names in groups.items():
        if any(name in inputs for name in names):
            kinds.append(kind)
    return Batch(draft.own(inputs), kinds, loss, list(draft.notes))


def _forward(model: Any, inputs: dict[str, Any]) -> Any:
    """One forward without gradients; the random state and the model are the same afterwards."""
    import torch

    from lora_doctor.nn.copying import attributes_kept

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in inputs.items()}
    with attributes_kept(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return model(**moved)


def _state_of_its_own(outputs: Any) -> bool:
    """Whether a model gave out a cache of a class of its own: some are written in place, which
    leaves no way back for gradients (xLSTM)."""
    names = ("cache_params", "past_key_values", "state", "states")
    kept = [getattr(outputs, name, None) for name in names]
    return any(
        not isinstance(value, (tuple, list))
        and type(value).__module__.startswith("transformers.models")
        for value in kept
    )


def _trained_without_cache() -> bool:
    """Whether the Trainer of the installed transformers sets `use_cache` to False by itself."""
    from dataclasses import fields

    from transformers import TrainingArguments

    known = {field.name: field.default for field in fields(TrainingArguments)}
    return known.get("use_cache") is False
