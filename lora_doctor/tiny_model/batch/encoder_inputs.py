"""Tokens that go into a tower of their own: `protein_input_ids` beside `protein_encoder_config`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lora_doctor.tiny_model.batch.makers import MAKERS

if TYPE_CHECKING:
    from lora_doctor.tiny_model.batch.draft import Draft


def vocabulary(draft: Draft, name: str) -> int:
    """Tokens that the tower knows which the argument `name`, ids or their mask, is for; 0 where it
    is no such argument."""
    said = re.fullmatch(r"(\w+)_(?:input_ids|attention_mask)", name)
    ids = f"{said[1]}_input_ids" if said else ""
    if said is None or name in MAKERS or ids in MAKERS or ids not in draft.parameters:
        return 0
    if "text" not in draft.modalities:
        return 0
    return draft.settings.number(
        "vocab_size", within=rf"(^|\.){said[1]}(_encoder|_model)?(_config)?$"
    )


def stream(draft: Draft, name: str) -> Any:
    """Ids for the tower of the argument `name`, or their mask, [batch, length]; else None."""
    import torch

    count = vocabulary(draft, name)
    if not count:
        return None
    shape = (draft.batch_size, draft.seq_len)
    if name.endswith("mask"):
        return torch.ones(shape, dtype=torch.long)
    return draft.normal_ids(shape[0] * shape[1], count).reshape(shape)
