"""Labels of the right kind, read from what the model returns without them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.loss import floating_tensors
from lora_doctor.tiny_model.batch.values.documented import documented, documented_terms
from lora_doctor.tiny_model.batch.values.token_ids import random_ids
from lora_doctor.tiny_model.batch.values.unknown import loss_argument

#: What `Batch.loss` says, and the arguments to add; one that is None is taken out of the inputs.
Candidate = tuple[str, dict[str, Any]]

_DECODER_STEPS = 8


@dataclass(frozen=True)
class _Run:
    """What is known of a forward without labels. `outputs`: None where it was not run."""

    draft: Draft
    inputs: dict[str, Any]
    outputs: Any

    @functools.cached_property
    def logits(self) -> Any:
        """None where there are none. Looked for as late as possible: where no output is called so,
        values decide, and the model on the meta device has none."""
        return _logits(self.outputs)

    @property
    def names(self) -> Container[str]:
        return self.draft.parameters

    @property
    def rows(self) -> int:
        return self.draft.batch_size

    @property
    def ids(self) -> Any:
        return self.inputs.get("input_ids")

    def dimensions(self) -> int:
        """Dimensions of the logits; 0 where there are none."""
        return 0 if self.logits is None else int(self.logits.dim())

    def random(self, shape: tuple[int, ...]) -> Any:
        import torch

        return torch.rand(shape, generator=self.draft.generator())

    def random_ids(self, *shape: int, vocab: int) -> Any:
        return random_ids(self.draft, math.prod(shape), vocab).reshape(shape)

    def has_documented_shape(self) -> bool:
        """Whether the docstring of forward gives labels more than two dimensions."""
        return len(documented_terms(self.draft, "labels")) > 2


def candidates(draft: Draft, inputs: dict[str, Any], outputs: Any) -> Iterator[Candidate]:
    """Kinds of labels to try, the likeliest first.

    `outputs` is what the model returned for `inputs`, or None where it was not run.
    """
    run = _Run(draft, inputs, outputs)
    yield from _start_and_end(run)
    if "return_loss" in inputs:
        yield "labels", {}
    if "labels" not in run.names and not _base_takes_labels(draft):
        yield from _other_argument(run)
        return
    for kind in (
        _with_sentence_label,
        _codes_of_decoder,
        _documented_for_decoder,
        _targets_of_decoder,
        _first_of_several_codes,
        _one_per_token,
        _one_per_sample,
        _one_per_pixel,
        _tokens_of_any_model,
        _fewer_than_frames,
        _class_of_sample,
        _documented,
        _scores_of_frames,
    ):
        for labels in kind(run):
            yield "labels", labels


def _start_and_end(run: _Run) -> Iterator[Candidate]:
    """Of the answer to a question."""
    import torch

    if "start_positions" in run.names and "end_positions" in run.names:
        first = torch.zeros(run.rows, dtype=torch.long)
        yield (
            "start_positions/end_positions",
            {"start_positions": first, "end_positions": first + 1},
        )


def _other_argument(run: _Run) -> Iterator[Candidate]:
    """Values of the shape that is predicted (the actions of a robot, a forecast)."""
    name = loss_argument(run.draft.model) if run.logits is not None else ""
    if name:
        predicted = [run.logits, *floating_tensors(run.outputs)]
        for shape in list(dict.fromkeys(tuple(tensor.shape) for tensor in predicted))[:4]:
            yield name, {name: run.random(shape) * 2 - 1}


def _with_sentence_label(run: _Run) -> Iterator[dict[str, Any]]:
    """Masked language models that also judge the order of two sentences."""
    import torch

    for name in ("next_sentence_label", "sentence_order_label"):
        if name in run.names:
            yield {"labels": run.ids, name: torch.zeros(run.rows, dtype=torch.long)}


def _codes_of_decoder(run: _Run) -> Iterator[dict[str, Any]]:
    """A decoder of several codebooks: on one step alone its attention learns nothing."""
    count = _codebooks(run.logits, run.rows)
    if "decoder_input_ids" not in run.names or count <= 1:
        return
    vocab = min(run.draft.tokens.decoder_vocab, run.logits.shape[-1])
    codes = run.random_ids(run.rows, _DECODER_STEPS, count, vocab=vocab)
    labels = codes.transpose(1, 2).reshape(run.rows * count, _DECODER_STEPS)
    yield {"labels": labels, "decoder_input_ids": codes}


def _documented_for_decoder(run: _Run) -> Iterator[dict[str, Any]]:
    """No row of tokens: codes of several codebooks (MusicGen), a spectrogram (SpeechT5)."""
    if not run.has_documented_shape() or not _has_decoder(run.draft):
        return
    values = _as_documented(run)
    yield {"labels": values, **dict.fromkeys(_decoder_inputs(run.inputs))}
    given = run.inputs.get("decoder_input_ids")
    if given is not None:  # where nothing says which token a decoder starts with
        yield {"labels": values[:, : given.shape[-1]]}


def _targets_of_decoder(run: _Run) -> Iterator[dict[str, Any]]:
    """Without decoder inputs first, because most classes make them from the labels."""
    if not _has_decoder(run.draft):
        return
    vocab = run.draft.tokens.decoder_vocab
    target = run.random_ids(run.rows, _DECODER_STEPS, vocab=vocab)
    if "decoder_input_ids" in run.inputs:
        yield {"labels": target, "decoder_input_ids": None}
    yield {"labels": target}


def _first_of_several_codes(run: _Run) -> Iterator[dict[str, Any]]:
    """Several tokens per position, of which text is the first and the one predicted (Kyutai)."""
    if run.ids is not None and run.ids.dim() == 3 and _is_per_token(run):
        yield {"labels": _token_labels(run, run.ids[..., 0])}


def _one_per_token(run: _Run) -> Iterator[dict[str, Any]]:
    ids = run.ids
    if ids is None or not _is_per_token(run):
        return
    labels = _token_labels(run, ids)
    marked = {"labels": labels, "token_type_ids": (labels != -100).long()}
    if {"labels", "token_type_ids"} <= run.draft.sent:  # its processor makes both (PaliGemma)
        yield marked
    yield {"labels": labels}
    count = run.draft.entries.number("num_codebooks")
    if ids.dim() == 2 and count > 1:  # text and audio in one sequence (CSM)
        # few enough codes for each decoder
        yield {"labels": run.random_ids(*ids.shape, count, vocab=64)}
    if "token_type_ids" in run.names and "token_type_ids" not in run.inputs:
        # Some take labels only beside the marks of what is to be answered (PaliGemma in 4.44).
        yield marked


def _one_per_sample(run: _Run) -> Iterator[dict[str, Any]]:
    """A class, or a score for each class."""
    import torch

    if run.dimensions() == 2:
        yield {"labels": torch.arange(run.rows) % max(1, run.logits.shape[-1])}
        yield {"labels": run.random(tuple(run.logits.shape))}


def _one_per_pixel(run: _Run) -> Iterator[dict[str, Any]]:
    """Of the image, or of a smaller map of it."""
    import torch

    if run.dimensions() == 4:
        side = run.draft.image.size
        yield {"labels": torch.zeros((run.rows, side, side), dtype=torch.long)}
        yield {"labels": torch.zeros((run.rows, *run.logits.shape[-2:]), dtype=torch.long)}


def _tokens_of_any_model(run: _Run) -> Iterator[dict[str, Any]]:
    """Tokens, though the logits are not one for each."""
    if run.ids is not None:
        yield {"labels": _token_labels(run, run.ids)}


def _fewer_than_frames(run: _Run) -> Iterator[dict[str, Any]]:
    """Sequences shorter than the logits (CTC), or as long where that is not the text's length."""
    import torch

    if run.dimensions() != 3:
        return
    steps, classes = int(run.logits.shape[1]), run.logits.shape[-1]
    few = max(1, min(3, steps // 4))
    yield {"labels": torch.arange(1, run.rows * few + 1).reshape(run.rows, few) % classes}
    if run.ids is not None and not _is_per_token(run):  # a fixed number of positions (Perceiver)
        yield {"labels": run.random_ids(run.rows, steps, vocab=classes)}


def _class_of_sample(run: _Run) -> Iterator[dict[str, Any]]:
    """The first class, though the logits have no dimension for classes."""
    import torch

    yield {"labels": torch.zeros(run.rows, dtype=torch.long)}


def _documented(run: _Run) -> Iterator[dict[str, Any]]:
    if run.has_documented_shape():
        yield {"labels": _as_documented(run)}


def _scores_of_frames(run: _Run) -> Iterator[dict[str, Any]]:
    """A score for each class of each frame."""
    if run.dimensions() == 3:
        yield {"labels": run.random(tuple(run.logits.shape))}


def _base_takes_labels(draft: Draft) -> bool:
    """Whether forward passes what it does not name to a base class whose forward takes labels
    (Qwen3.5's classifier)."""
    if not draft.takes_any_argument():
        return False
    above = [vars(cls).get("forward") for cls in type(draft.model).__mro__[1:]]
    return any("labels" in inspect.signature(found).parameters for found in above if found)


def _decoder_inputs(inputs: dict[str, Any]) -> list[str]:
    """Names of the inputs of a decoder, which many classes make from the labels themselves."""
    return [name for name in inputs if name.startswith("decoder_input_")]


def _as_documented(run: _Run) -> Any:
    """Labels of the type and shape that the docstring of forward has."""
    import torch

    kind, shape = documented(run.draft, "labels", run.inputs)
    if "Long" not in kind and "Int" not in kind:
        return torch.randn(shape, generator=run.draft.generator())
    vocab = run.draft.tokens.decoder_vocab if run.logits is None else run.logits.shape[-1]
    return run.random_ids(*shape, vocab=vocab)


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
    return next(iter(floating_tensors(outputs)), None)


def _codebooks(logits: Any, batch_size: int) -> int:
    """Rows of logits for a row of the batch: codebooks are folded into the batch (Dia)."""
    if logits is None or logits.dim() != 3 or logits.shape[0] % batch_size:
        return 1
    return int(logits.shape[0]) // batch_size


def _is_per_token(run: _Run) -> bool:
    """Whether there is a row of logits for each token; taken so where nothing was run."""
    logits = run.logits
    return logits is None or (logits.dim() == 3 and logits.shape[1] == run.ids.shape[1])


def _token_labels(run: _Run, ids: Any) -> Any:
    """Token labels: the ids of each row backwards, ignored (-100) where a special token stands.

    Backwards, because a class that does not shift them (a decoder alone, a masked language model)
    would have its own input as target, which tied embeddings already give: such a loss has nowhere
    to fall to (Blenderbot's in bfloat16).
    """
    import torch

    logits = run.logits
    special = [i for i in run.draft.entries.special_ids() if i >= 0]
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
