"""The kernels of a GPU, on the meta device, where they keep other tensors than the plain ones.

``scaled_dot_product_attention`` chooses a kernel by device, and on meta it takes the plain one,
which keeps a matrix of length times length for every head. A GPU takes the flash kernel for half
precision without a mask, else the memory-efficient one: their own meta versions stand in, with
what they keep for the backward. ``dropout`` keeps a mask of one byte for each element on a GPU;
elsewhere it keeps the factors, in the dtype of its input. The product of grouped
experts takes every floating dtype on a GPU, on meta bfloat16 alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_doctor.memory_plan.autocast import Autocast

#: Widest head that the flash kernel takes.
FLASH_HEAD = 256


@contextlib.contextmanager
def kernels_of_a_gpu(mixed: Autocast | None = None) -> Iterator[None]:
    """In this context attention and dropout on meta keep what the kernels of a GPU keep.

    ``mixed``: the autocast whose casts attention gets.
    """
    import torch

    functional: Any = torch.nn.functional
    plain, dropout = functional.scaled_dot_product_attention, functional.dropout

    def attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
        is_causal: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        """``options``: ``scale`` and, in later releases of torch, ``enable_gqa``."""
        if query.device.type != "meta" or query.dim() not in (3, 4):
            return plain(query, key, value, attn_mask, dropout_p, is_causal, **options)
        if mixed is not None:
            (query, key, value, attn_mask), _ = mixed.cast(
                plain, (query, key, value, attn_mask), {}
            )
        scale = options.get("scale")
        if (
            options.get("enable_gqa")
            and query.shape[-3] != key.shape[-3]
            and not _flash(query, value, attn_mask)
        ):
            # Of the kernels of a GPU only flash attention shares keys between heads: the plain one
            # is left, with its matrix of length times length for every head.
            return plain(query, key, value, attn_mask, dropout_p, is_causal, **options)
        if query.dim() == 3:
            query, key, value = (one.unsqueeze(0) for one in (query, key, value))
            mask = attn_mask.unsqueeze(0) if attn_mask is not None else None
            return _fused(query, key, value, mask, dropout_p, is_causal, scale).squeeze(0)
        return _fused(query, key, value, attn_mask, dropout_p, is_causal, scale)

    def masked(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if input.device.type != "meta" or not training or not 0 < p < 1 or inplace:
            return dropout(input, p, training, inplace)
        return torch.native_dropout(input, p, True)[0]

    functional.scaled_dot_product_attention = attention
    functional.dropout = masked
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain
        functional.dropout = dropout


def run_as_on_a_gpu(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """One operator on meta tensors, below autograd, also where only a GPU takes their dtype."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    grouped = getattr(torch.ops.aten, "_grouped_mm", None)
    given: Any = args[0] if args else None
    if (
        grouped is None
        or getattr(operator, "overloadpacket", None) is not grouped
        or given.device.type != "meta"
        or given.dtype == torch.bfloat16
    ):
        return operator(*args, **kwargs)
    with _disable_current_modes():
        halved = [one.to(torch.bfloat16) if _is_floating(one) else one for one in args]
        like = operator(*halved, **kwargs)
    return torch.empty_strided(like.shape, like.stride(), dtype=given.dtype, device="meta")


def _is_floating(value: Any) -> bool:
    return hasattr(value, "is_floating_point") and bool(value.is_floating_point())


def _fused(
    query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, scale: float | None
) -> Any:
    """Shapes: ``query`` [batch, heads, length, width]; ``key``, ``value`` may have fewer heads."""
    import torch

    if _flash(query, value, mask):
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


def _flash(query: Any, value: Any, mask: Any) -> bool:
    """Whether a GPU takes the flash kernel."""
    import torch

    half = query.dtype in (torch.float16, torch.bfloat16)
    return mask is None and half and query.shape[-1] == value.shape[-1] <= FLASH_HEAD
