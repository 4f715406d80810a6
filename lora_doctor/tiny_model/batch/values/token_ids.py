"""Random token ids, and the tokens of the config that stand for images, audio and video."""

from __future__ import annotations

from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.modalities import WITH_PLACEHOLDERS


def random_ids(draft: Draft, count: int, vocab: int) -> Any:
    """`count` random token ids below `vocab` that are not special. Shape [count], int64."""
    import torch

    special = draft.entries.special_ids()
    allowed = [i for i in range(min(vocab, 4096)) if i not in special]
    allowed = [i for i in allowed if i > 2] or allowed or [0]
    pick = torch.randint(len(allowed), (count,), generator=draft.generator())
    return torch.tensor(allowed)[pick]


def input_ids(draft: Draft) -> Any:
    """Token ids with the placeholders of every modality among them. Shape [batch, length], or
    [batch, length, codebooks] where a position has several codes; int64."""
    import torch

    per_sample = draft.seq_len
    text = random_ids(draft, draft.batch_size * per_sample, draft.tokens.vocab)
    rows = []
    for row in range(draft.batch_size):
        own = text[row * per_sample : (row + 1) * per_sample]
        rows.append(torch.cat([own[:2], *_placeholders(draft), own[2:]]))
    ids = torch.stack(rows)
    if draft.tokens.last_id:
        ids[:, -1] = draft.tokens.last_id
    codebooks = draft.tokens.codebooks
    return ids[..., None].repeat(1, 1, codebooks) if codebooks else ids


def _placeholders(draft: Draft) -> list[Any]:
    """The tokens of one sample that features take the place of, with their borders."""
    import torch

    parts: list[Any] = []
    for modality in WITH_PLACEHOLDERS:
        name = modality.name
        count = draft.placeholders.get(name, 0) if name in draft.modalities else 0
        placeholder = placeholder_id(draft, name)
        if count and placeholder is not None and placeholder < max(draft.tokens.vocab, 1):
            parts += border_ids(draft, name, "start")
            parts.append(torch.full((count,), placeholder))
            parts += border_ids(draft, name, "end")
    return parts


def placeholder_id(draft: Draft, modality: str) -> int | None:
    """The token that stands for one feature of a modality. Where forward takes no videos of their
    own and the config marks nothing else, an image is a frame of one."""
    found = draft.entries.placeholder(modality)
    if found is None and modality == "image" and "pixel_values_videos" not in draft.parameters:
        found = draft.entries.placeholder("video")
    return found


def border_ids(draft: Draft, modality: str, which: str) -> list[Any]:
    """The `start` or `end` token that M-RoPE code looks for around an image; empty where the
    config has none. Each of shape [1]."""
    import torch

    names = [f"vision_{which}_token_id"] if modality != "audio" else []
    names += [f"{modality}_{which}_token_id"]
    marker = draft.entries.number(*names)
    return [torch.tensor([marker])] if 0 < marker < draft.tokens.vocab else []
