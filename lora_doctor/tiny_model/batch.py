"""A training batch for any model: from its signature and config, corrected by its objections."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from .batch_draft import Draft
from .batch_features import count_features
from .batch_names import common_names, has_tower, renamed
from .batch_objections import answer, one_line
from .batch_settings import Settings

MAX_ATTEMPTS = 12
_FILLED = -1e4  # the lowest number of an output is no result from here on, but fills a mask


class BatchError(Exception):
    """No batch was found that the model accepts; `reason` is one line with the last exception.

    `objections` has one line for each choice of modalities that was tried; `raised` is what forward
    raised for the fullest of them: at last, and where the guessing began.
    """

    def __init__(
        self,
        reason: str,
        objections: list[str] | None = None,
        raised: tuple[BaseException, ...] = (),
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.objections = objections or [reason]
        self.raised = raised


@dataclass
class Batch:
    """Forward arguments and how their loss is had.

    `modality` names what the batch exercises, in the order text, image, audio, video; `left_out`
    what forward could take and objected to (the first note says why). `loss` is
    "labels", "start_positions/end_positions", "its own" (forward returns one without labels) or
    "surrogate" (made from the outputs).
    """

    inputs: dict[str, Any]
    modality: list[str]
    loss: str
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    objections: list[str] = field(default_factory=list)

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in self.inputs.items()}
        return Batch(moved, self.modality, self.loss, self.notes, self.left_out, self.objections)


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
    notes: list[str] = []
    objections: list[str] = []
    raised: tuple[BaseException, ...] = ()
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
                reason, raised = error.reason, error.raised
            notes = [f"{'+'.join(sorted(modalities))}: {reason}"]
            continue
        batch.left_out = sorted(choices[0] - modalities)
        batch.objections = objections
        return batch
    raise BatchError(reason, objections, raised)


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
    from .batch_labels import candidates

    name = type(draft.model).__name__
    count_features(draft)
    if not run:
        inputs = draft.make()
        for kind, more in candidates(draft, inputs, None) if with_labels else ():
            return _batch(draft, {**inputs, **more}, kind)
        return _batch(draft, inputs, "surrogate")
    outputs = None
    last = ""
    for _ in range(MAX_ATTEMPTS):
        inputs = draft.make()
        shapes = draft.shapes()
        if not inputs:
            raise BatchError(f"{name}.forward: no argument could be made")
        try:
            outputs = _forward(draft.model, draft.own(inputs))
            break
        except Exception as error:  # noqa: BLE001 - the objection is what we work with
            last = one_line(error)
            if not answer(draft, inputs, error):
                first = draft.blind or error
                said = f"{name}.forward: {one_line(first)}"
                heard = (error, first) if first is not error else (error,)
                raise BatchError(said, list(dict.fromkeys((said, last))), heard) from None
            if draft.shapes() != shapes:
                count_features(draft, again=True)
    if outputs is None:
        raise BatchError(f"{name}.forward: after {MAX_ATTEMPTS} attempts: {last}")
    if _state_of_its_own(outputs) and draft.can_do_without_cache() and _trained_without_cache():
        draft.extra["use_cache"] = False
        draft.notes.append("use_cache=False (as the Trainer has it)")
        inputs = draft.make()
    if not with_labels:
        return _batch(draft, inputs, "surrogate")
    for kind, more in candidates(draft, inputs, outputs):
        full = {k: v for k, v in {**inputs, **more}.items() if v is not None}
        try:
            loss = _loss_of(_forward(draft.model, draft.own(full)))
        except Exception as error:  # noqa: BLE001 - not the kind of label for this head
            draft.notes.append(f"{kind} tried: {one_line(error)}")
            continue
        if loss is not None and bool(loss.isfinite().all()):
            return _batch(draft, full, kind)
        draft.notes.append(f"{kind} tried: {'no loss' if loss is None else 'loss not finite'}")
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

    from lora_doctor.copying import attributes_kept

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


def batch_loss(model: Any, batch: Batch) -> Any:
    """The scalar loss of `batch` under `model` (or a wrapper around it), with gradients.

    Raises:
        BatchError: neither a loss nor a floating point output.
    """
    outputs = model(**batch.inputs)
    loss = _loss_of(outputs) if batch.loss != "surrogate" else None
    return loss if loss is not None else surrogate_loss(outputs)


def _loss_of(outputs: Any) -> Any:
    """The loss among the outputs as a scalar, or None."""
    import torch

    loss = outputs.get("loss") if hasattr(outputs, "get") else getattr(outputs, "loss", None)
    if isinstance(loss, dict):
        loss = sum(v for v in loss.values() if isinstance(v, torch.Tensor))
    if isinstance(loss, torch.Tensor) and loss.is_floating_point():
        return loss.mean()
    return None


def surrogate_loss(outputs: Any) -> Any:
    """Mean squared distance of the floating point outputs from fixed patterns of their shapes.

    Of all of them: which one the adapters reach is not seen without gradients. From zero it would
    not do: what a LayerNorm puts out has the same square whatever it learns.

    Raises:
        BatchError: the outputs hold no floating point tensor.
    """

    tensors = list(_tensors(outputs))
    if not tensors:
        raise BatchError(
            f"{type(outputs).__name__} holds no floating point tensor to make a loss from"
        )
    return sum(_distance(tensor) for tensor in tensors) / len(tensors)


def _distance(tensor: Any) -> Any:
    import torch

    places = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
    apart = tensor.float() - torch.sin(places.float())
    lowest = tensor.detach().min()
    if bool(lowest.isfinite()) and float(lowest) <= _FILLED:  # where something is masked
        shown = tensor.detach() != lowest
        apart = apart[shown] if bool(shown.any()) else apart
    return apart.pow(2).mean()


def _tensors(outputs: Any) -> Any:
    """Floating point tensors in the outputs, but for masks, which hold minus infinity."""
    import torch

    if isinstance(outputs, torch.Tensor):
        if outputs.is_floating_point() and outputs.numel() and not bool(outputs.isneginf().any()):
            yield outputs
    elif isinstance(outputs, dict):
        for key, value in outputs.items():
            if key != "loss":
                yield from _tensors(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from _tensors(value)
