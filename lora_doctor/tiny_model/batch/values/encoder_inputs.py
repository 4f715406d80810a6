"""Tokens that go into an encoder of their own: `protein_input_ids` beside
`protein_encoder_config`."""

from __future__ import annotations

import re
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.values.makers import MAKERS
from lora_doctor.tiny_model.batch.values.token_ids import random_ids


def encoder_vocabulary(draft: Draft, name: str) -> int:
    """Number of tokens that the encoder knows which the argument `name`, ids or their mask, is for;
    0 where it is no such argument."""
    named = re.fullmatch(r"(\w+)_(?:input_ids|attention_mask)", name)
    ids = f"{named[1]}_input_ids" if named else ""
    if named is None or name in MAKERS or ids in MAKERS or ids not in draft.parameters:
        return 0
    if "text" not in draft.modalities:
        return 0
    return draft.entries.number(
        "vocab_size", within=rf"(^|\.){named[1]}(_encoder|_model)?(_config)?$"
    )


def encoder_input(draft: Draft, name: str) -> Any:
    """Ids for the encoder of the argument `name`, or their mask, [batch, length]; else None."""
    import torch

    vocab = encoder_vocabulary(draft, name)
    if not vocab:
        return None
    shape = (draft.batch_size, draft.seq_len)
    if name.endswith("mask"):
        return torch.ones(shape, dtype=torch.long)
    return random_ids(draft, shape[0] * shape[1], vocab).reshape(shape)
