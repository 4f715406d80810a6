"""Labels of the right kind, read from what the model returns without them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from lora_doctor.tiny_model.batch.documented import documented, documented_terms
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.unknown import loss_argument


def candidates(
    draft: Draft, inputs: dict[str, Any], outputs: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kinds of labels to try, the likeliest first: (what `Batch.loss` says, arguments to add).

    An argument that is None is taken out of the inputs. `outputs` is what the model returned for
    `inputs`, or None where it was not run.
    """
    import torch

    names = draft.parameters
    b = draft.batch_size
    ids = inputs.get("input_ids")
    if "start_positions" in names and "end_positions" in names:
        first = torch.zeros(b, dtype=torch.long)
        yield (
            "start_positions/end_positions",
            {"start_positions": first, "end_positions": first + 1},
        )
    if "return_loss" in inputs:
        yield "labels", {}
    logits = _logits(outputs)
    if "labels" not in names and not _handed_to_base(draft):
        other = loss_argument(draft.model) if logits is not None else ""
        if other:  # numbers of the shape that is predicted (the actions of a robot, a forecast)
            put_out = [logits, *_floating(outputs)]
            for shape in list(dict.fromkeys(tuple(tensor.shape) for tensor in put_out))[:4]:
                values = torch.rand(shape, generator=draft.generator()) * 2 - 1
                yield other, {other: values}
        return
    if "next_sentence_label" in names:
        yield "labels", {"labels": ids, "next_sentence_label": torch.zeros(b, dtype=torch.long)}
    if "sentence_order_label" in names:
        yield "labels", {"labels": ids, "sentence_order_label": torch.zeros(b, dtype=torch.long)}
    if "decoder_input_ids" in names and _streams(logits, b) > 1:
        # A decoder of several streams of codes: on one step alone its attention learns nothing
        streams = _streams(logits, b)
        codes = draft.normal_ids(b * 8 * streams, min(draft.decoder_vocab, logits.shape[-1]))
        inputs_of = codes.reshape(b, 8, streams)
        labels_of = inputs_of.transpose(1, 2).reshape(b * streams, 8)
        yield "labels", {"labels": labels_of, "decoder_input_ids": inputs_of}
    shaped = len(documented_terms(draft, "labels")) > 2
    if shaped and _has_decoder(draft):
        # No row of words: streams of codes (MusicGen), a spectrogram (SpeechT5)
        values = _as_documented(draft, inputs, logits)
        yield "labels", {"labels": values, **dict.fromkeys(_decoder_inputs(inputs))}
        given = inputs.get("decoder_input_ids")
        if given is not None:  # where nothing says which token a decoder starts with
            yield "labels", {"labels": values[:, : given.shape[-1]]}
    if _has_decoder(draft):
        target = draft.normal_ids(b * 8, draft.decoder_vocab).reshape(b, 8)
        if "decoder_input_ids" in inputs:
            yield "labels", {"labels": target, "decoder_input_ids": None}
        yield "labels", {"labels": target}
    if ids is not None and ids.dim() == 3 and _per_token(logits, ids):
        # Several streams, of which text is the first and the one that is predicted (Kyutai)
        yield "labels", {"labels": _token_labels(draft, ids[..., 0], logits)}
    if ids is not None and _per_token(logits, ids):
        labels = _token_labels(draft, ids, logits)
        yield "labels", {"labels": labels}
        streams = draft.settings.number("num_codebooks")
        if ids.dim() == 2 and streams > 1:  # text and sound in one sequence (CSM)
            codes = draft.normal_ids(ids.numel() * streams, 64)  # few enough for each decoder
            yield "labels", {"labels": codes.reshape(*ids.shape, streams)}
        if "token_type_ids" in names and "token_type_ids" not in inputs:
            # Some take labels only beside the marks of what is to be answered (PaliGemma in 4.44).
            yield "labels", {"labels": labels, "token_type_ids": (labels != -100).long()}
    if logits is not None and logits.dim() == 2:
        classes = logits.shape[-1]
        yield "labels", {"labels": torch.arange(b) % max(1, classes)}
        yield "labels", {"labels": torch.rand(tuple(logits.shape), generator=draft.generator())}
    if logits is not None and logits.dim() == 4:
        side = (b, draft.image_size, draft.image_size)
        yield "labels", {"labels": torch.zeros(side, dtype=torch.long)}
        yield "labels", {"labels": torch.zeros((b, *logits.shape[-2:]), dtype=torch.long)}
    if ids is not None:
        yield "labels", {"labels": _token_labels(draft, ids, logits)}
    if logits is not None and logits.dim() == 3:
        classes = logits.shape[-1]
        steps = max(1, min(3, logits.shape[1] // 4))
        yield "labels", {"labels": torch.arange(1, b * steps + 1).reshape(b, steps) % classes}
        if ids is not None and not _per_token(logits, ids):  # a fixed number of places (Perceiver)
            count = int(logits.shape[1])
            yield "labels", {"labels": draft.normal_ids(b * count, classes).reshape(b, count)}
    yield "labels", {"labels": torch.zeros(b, dtype=torch.long)}
    if shaped:
        yield "labels", {"labels": _as_documented(draft, inputs, logits)}
    if logits is not None and logits.dim() == 3:  # a number for each class of each frame
        yield "labels", {"labels": torch.rand(tuple(logits.shape), generator=draft.generator())}


def _handed_to_base(draft: Draft) -> bool:
    """Whether forward hands what it does not name to a base class whose forward takes labels
    (Qwen3.5's classifier)."""
    if not any(item.kind is item.VAR_KEYWORD for item in draft.parameters.values()):
        return False
    above = [vars(cls).get("forward") for cls in type(draft.model).__mro__[1:]]
    return any("labels" in inspect.signature(found).parameters for found in above if found)


def _decoder_inputs(inputs: dict[str, Any]) -> list[str]:
    """Names of what a decoder is given, which many make from the labels themselves."""
    return [name for name in inputs if name.startswith("decoder_input_")]


def _as_documented(draft: Draft, inputs: dict[str, Any], logits: Any) -> Any:
    """Labels of the type and shape that the docstring of forward has."""
    import torch

    kind, shape = documented(draft, "labels", inputs)
    if "Long" not in kind and "Int" not in kind:
        return torch.randn(shape, generator=draft.generator())
    count = 1
    for size in shape:
        count *= size
    classes = draft.decoder_vocab if logits is None else logits.shape[-1]
    return draft.normal_ids(count, classes).reshape(shape)


def _has_decoder(draft: Draft) -> bool:
    config = getattr(draft.model, "config", None)
    return "decoder_input_ids" in draft.parameters or bool(
        getattr(config, "is_encoder_decoder", False)
    )


def _logits(outputs: Any) -> Any:
    """The first output that looks like logits: named so, else the first floating tensor."""
    if outputs is None:
        return None
    for name in ("logits", "prediction_logits", "logits_per_text"):
        value = outputs.get(name) if hasattr(outputs, "get") else None
        if value is not None and hasattr(value, "dim"):
            return value
    return next(iter(_floating(outputs)), None)


def _floating(outputs: Any) -> list[Any]:
    from lora_doctor.tiny_model.batch.loss import _tensors

    return list(_tensors(outputs))


def _streams(logits: Any, batch_size: int) -> int:
    """Rows of logits for a row of the batch: streams of codes are folded into the batch (Dia)."""
    if logits is None or logits.dim() != 3 or logits.shape[0] % batch_size:
        return 1
    return int(logits.shape[0]) // batch_size


def _per_token(logits: Any, ids: Any) -> bool:
    return logits is None or (logits.dim() == 3 and logits.shape[1] == ids.shape[1])


def _token_labels(draft: Draft, ids: Any, logits: Any) -> Any:
    """Token labels: the ids of each row backwards, ignored (-100) where a special token stands.

    Backwards, because a class that does not shift them (a decoder alone, a masked language model)
    would be asked for its own input, which tied embeddings already give: such a loss has nowhere to
    fall to (Blenderbot's in bfloat16).
    """
    import torch

    special = [i for i in draft.settings.special_ids() if i >= 0]
    labels = ids.clone()
    hidden = torch.isin(ids, torch.tensor(special, dtype=ids.dtype)) if special else None
    if logits is not None and logits.dim() == 3 and logits.shape[-1] < int(labels.max()) + 1:
        return labels % logits.shape[-1]  # token classes, not words
    if hidden is None or bool(hidden.all()):
        return labels.flip(-1)
    for row, unused in zip(labels, hidden, strict=True):
        row[~unused] = row[~unused].flip(0)
    labels[hidden] = -100
    return labels
