"""Forward arguments about images and videos, as the processors of transformers make them.

Each maker gets the draft and the arguments made so far; None leaves the argument out.
"""

from __future__ import annotations

from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.image_geometry import (
    grid,
    images_per_sample,
    patch_elements,
    patch_size,
    tiles,
)
from lora_doctor.tiny_model.batch.values.token_ids import input_ids

_PATCHES = 16  # per image, where it is cut into a fixed number of them: 4 rows and 4 columns


def pixel_values(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Values from -1 to 1 in the layout of the draft."""
    import torch

    return torch.rand(_shape(draft), generator=draft.generator()) * 2 - 1


def _shape(draft: Draft) -> tuple[int, ...]:
    b, c, side = draft.batch_size, draft.image.channels, draft.image.size
    layout = draft.image.layout
    if layout in ("grid", "grid_patches", "strip"):
        patch, patches = patch_size(draft.entries), _patches_in_grids(draft)
        return {
            "grid": (patches, patch_elements(draft)),
            "grid_patches": (patches, c, patch, patch),
            "strip": (1, c, patch, patches * patch),
        }[layout]
    if layout == "patches":
        return b, _PATCHES, patch_elements(draft)
    if layout == "bnchw":
        return b, images_per_sample(draft), c, side, side
    if layout == "tiles":
        return b, 1, _most_tiles(draft), c, side, side
    if layout == "bcthw":
        return b, c, _frames(draft), side, side
    return b, c, side, side


def _patches_in_grids(draft: Draft) -> int:
    """Patches of all images of the batch together."""
    frames, rows, columns = grid(draft)
    return draft.batch_size * frames * rows * columns


def _most_tiles(draft: Draft) -> int:
    return draft.entries.number("max_num_tiles", default=4)


def _frames(draft: Draft) -> int:
    return draft.entries.number("num_frames", default=2)


def pixel_values_videos(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    if draft.image.layout == "grid":
        return pixel_values(draft, inputs)
    side = draft.image.size
    shape = (draft.batch_size, _frames(draft), draft.image.channels, side, side)
    return torch.rand(shape, generator=draft.generator()) * 2 - 1


def grid_thw(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Frames, rows and columns of patches of each image."""
    import torch

    return torch.tensor([grid(draft)] * draft.batch_size)


def grid_hw(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Rows and columns of patches of each image; no frames."""
    import torch

    return torch.tensor([grid(draft)[1:]] * draft.batch_size)


def image_merge_sizes(draft: Draft, inputs: dict[str, Any]) -> Any:
    """How many patches per side become one token, for each image."""
    import torch

    merge = draft.entries.number("spatial_merge_size", "merge_size", default=1)
    return torch.full((draft.batch_size,), merge)


def image_sizes(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Height and width of each image in pixels, before it is cut into tiles."""
    import torch

    side = draft.image.size
    if draft.image.layout == "bchw":
        return torch.tensor([[side, side]] * draft.batch_size)
    rows, columns = tiles(draft)
    return torch.tensor([[rows * side, columns * side]] * draft.batch_size)


def pixel_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    pixels = inputs.get("pixel_values")
    if pixels is None:
        return None
    # As an index, integers would mean positions and take gigabytes where a mask is meant.
    masks = [
        p for name, p in draft.parameters.items() if name.startswith("pixel_") and "mask" in name
    ]
    selects = any("Bool" in str(parameter.annotation) for parameter in masks)
    dtype = torch.bool if selects else torch.long
    if pixels.dim() == 3:
        return torch.ones(pixels.shape[:2], dtype=dtype)
    shape = (*pixels.shape[:-3], *pixels.shape[-2:])
    return torch.ones(shape, dtype=dtype)


def aspect_ratio_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.ones((draft.batch_size, 1), dtype=torch.long)


def aspect_ratio_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    """One image of one tile."""
    import torch

    mask = torch.zeros((draft.batch_size, 1, _most_tiles(draft)), dtype=torch.long)
    mask[..., 0] = 1
    return mask


def cross_attention_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    length = input_ids(draft).shape[1]
    return torch.ones((draft.batch_size, length, 1, _most_tiles(draft)), dtype=torch.long)


def spatial_shapes(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Rows and columns of patches of each image."""
    import torch

    return torch.tensor([[4, 4]] * draft.batch_size)


def patch_positions(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Column and row of each patch, from 0."""
    import torch

    steps = torch.arange(4)
    points = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    return points.reshape(1, _PATCHES, 2).repeat(draft.batch_size, 1, 1)


def flattened_patches(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Pix2Struct: row and column (from 1), then the values of the patch."""
    import torch

    size = draft.image.patch_dim or draft.image.channels * patch_size(draft.entries) ** 2
    values = torch.rand((draft.batch_size, _PATCHES, size), generator=draft.generator())
    positions = (patch_positions(draft, inputs) + 1).to(values.dtype)
    return torch.cat([positions, values], dim=-1)


def bool_masked_pos(draft: Draft, inputs: dict[str, Any]) -> Any:
    """The first half of the patches of each image is masked."""
    import torch

    count = draft.image.masked_patches or (draft.image.size // patch_size(draft.entries)) ** 2
    mask = torch.zeros((draft.batch_size, count), dtype=torch.bool)
    mask[:, : max(1, count // 2)] = True
    return mask


def image_flags(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.ones((draft.batch_size, 1), dtype=torch.long)


def image_attention_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.ones((*input_ids(draft).shape, 1), dtype=torch.long)


def image_embeds_position_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Where the features of an image go, for models that mark positions instead of tokens."""
    import torch

    mask = torch.zeros(input_ids(draft).shape, dtype=torch.long)
    count = draft.entries.number("latent_query_num", "num_query_tokens", default=8)
    mask[:, 2 : 2 + (draft.image.positions or count)] = 1
    return mask
