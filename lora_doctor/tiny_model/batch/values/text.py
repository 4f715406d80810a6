"""Forward arguments about tokens: their masks, types and boxes, and those of decoders.

Each maker gets the draft and the arguments made so far; None leaves the argument out.
"""

from __future__ import annotations

from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.values import token_ids
from lora_doctor.tiny_model.batch.values.documented import documented, documented_terms
from lora_doctor.tiny_model.batch.values.token_ids import border_ids, placeholder_id, random_ids

_DECODER_TOKENS = 8
_QFORMER_TOKENS = 6


def input_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    return token_ids.input_ids(draft)


def attention_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Ones beside what goes into the model: patches, tokens, frames or samples of audio."""
    import torch

    if "flattened_patches" in inputs:
        return torch.ones(inputs["flattened_patches"].shape[:2])
    for name in ("input_ids", "inputs_embeds"):
        if name in inputs:
            return torch.ones(inputs[name].shape[:2], dtype=torch.long)
    if "input_features" in inputs:
        return torch.ones((draft.batch_size, draft.audio.frames), dtype=torch.long)
    if "input_values" in inputs:
        return torch.ones(inputs["input_values"].shape[:2], dtype=torch.long)
    return None


def token_type_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    """1 where a placeholder of an image stands, 3 where one of audio does and the types are those
    of modalities, 0 elsewhere."""
    import torch

    ids = inputs.get("input_ids")
    if ids is None:
        return None
    types = torch.zeros_like(ids)
    image, audio = placeholder_id(draft, "image"), placeholder_id(draft, "audio")
    if image is not None and "image" in draft.modalities:
        types[ids == image] = 1
    of_modalities = {"mm_token_type_ids", "moe_mm_token_type_ids"} & set(draft.parameters)
    if audio is not None and "audio" in draft.modalities and of_modalities:
        types[ids == audio] = 3
    return types


def moe_mm_token_type_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Types that count the start and the end of an image as parts of it (Ernie's experts)."""
    types, ids = token_type_ids(draft, inputs), inputs.get("input_ids")
    if types is not None and ids is not None and "image" in draft.modalities:
        for which in ("start", "end"):
            for marker in border_ids(draft, "image", which):
                types[ids == marker[0]] = 1
    return types


def bbox(draft: Draft, inputs: dict[str, Any]) -> Any:
    """The box of each token on its page: left, top, right, bottom."""
    import torch

    shape = (*token_ids.input_ids(draft).shape, 4)
    box = torch.tensor([1, 1, 9, 9]) if "bbox" in draft.parameters else torch.zeros(4)
    return box.expand(shape).clone()


def decoder_input_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    rows = draft.batch_size
    terms = documented_terms(draft, "decoder_input_ids")
    if terms and "*" in terms[0]:  # of several codebooks (MusicGen)
        rows = documented(draft, "decoder_input_ids", inputs)[1][0]
    ids = random_ids(draft, rows * _DECODER_TOKENS, draft.tokens.decoder_vocab)
    return ids.reshape(rows, _DECODER_TOKENS)


def qformer_input_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    vocab = draft.entries.number("vocab_size", within="qformer", default=64)
    shape = (draft.batch_size, _QFORMER_TOKENS)
    return random_ids(draft, shape[0] * shape[1], vocab).reshape(shape)


def qformer_attention_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.ones((draft.batch_size, _QFORMER_TOKENS), dtype=torch.long)


def return_loss(draft: Draft, inputs: dict[str, Any]) -> Any:
    return True
