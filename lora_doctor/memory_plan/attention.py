"""The attention kernels of a GPU, on the meta device.

``scaled_dot_product_attention`` chooses a kernel by device, and on meta it takes the plain one,
which keeps a matrix of length times length for every head. A GPU takes the flash kernel for half
precision without a mask, else the memory-efficient one: their own meta versions stand in, with
what they keep for the backward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

#: Widest head that the flash kernel takes.
FLASH_HEAD = 256


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """In this context attention on meta keeps what the kernels of a GPU keep."""
    import torch

    functional: Any = torch.nn.functional
    plain = functional.scaled_dot_product_attention

    def attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
        is_causal: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        """``options``: ``scale`` and, in later releases of torch, ``enable_gqa``."""
        if query.device.type != "meta" or query.dim() not in (3, 4):
            return plain(query, key, value, attn_mask, dropout_p, is_causal, **options)
        scale = options.get("scale")
        if query.dim() == 3:
            query, key, value = (one.unsqueeze(0) for one in (query, key, value))
            mask = attn_mask.unsqueeze(0) if attn_mask is not None else None
            return _fused(query, key, value, mask, dropout_p, is_causal, scale).squeeze(0)
        return _fused(query, key, value, attn_mask, dropout_p, is_causal, scale)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def _fused(
    query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, scale: float | None
) -> Any:
    """Shapes: ``query`` [batch, heads, length, width]; ``key``, ``value`` may have fewer heads."""
    import torch

    half = query.dtype in (torch.float16, torch.bfloat16)
    even = query.shape[-1] == value.shape[-1] <= FLASH_HEAD
    if mask is None and half and even:
        made = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout, causal, False, scale=scale
        )
        return made[0]
    heads = query.shape[1]
    if key.shape[1] != heads:
        key = key.repeat_interleave(heads // key.shape[1], dim=1)
        value = value.repeat_interleave(heads // value.shape[1], dim=1)
    bias = None
    if mask is not None:
        if mask.dtype is torch.bool:
            bias = torch.zeros(mask.shape, dtype=query.dtype, device="meta").masked_fill(~mask, 0)
        else:
            bias = mask
        while bias.dim() < 4:
            bias = bias.unsqueeze(0)
        bias = bias.expand(query.shape[0], heads, query.shape[2], key.shape[2])
    made = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout, causal, scale=scale
    )
    return made[0]
