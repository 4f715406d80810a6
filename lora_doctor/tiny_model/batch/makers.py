"""Forward arguments by name, as the processors of transformers make them.

Each maker gets the draft and the arguments made so far; None leaves the argument out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lora_doctor.tiny_model.batch.documented import documented, documented_terms

if TYPE_CHECKING:
    from lora_doctor.tiny_model.batch.draft import Draft


def _ones_like_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    if "flattened_patches" in inputs:
        return torch.ones(inputs["flattened_patches"].shape[:2])
    for name in ("input_ids", "inputs_embeds"):
        if name in inputs:
            return torch.ones(inputs[name].shape[:2], dtype=torch.long)
    if "input_features" in inputs:
        return torch.ones((draft.batch_size, draft.frames), dtype=torch.long)
    if "input_values" in inputs:
        return torch.ones(inputs["input_values"].shape[:2], dtype=torch.long)
    return None


def _input_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    return draft.input_ids()


def _zeros_like_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Token types: 1 where a placeholder of an image stands, 0 elsewhere."""
    import torch

    ids = inputs.get("input_ids")
    if ids is None:
        return None
    types = torch.zeros_like(ids)
    image, audio = draft.marker("image"), draft.marker("audio")
    if image is not None and "image" in draft.modalities:
        types[ids == image] = 1
    if (
        audio is not None
        and "audio" in draft.modalities
        and {"mm_token_type_ids", "moe_mm_token_type_ids"} & set(draft.parameters)
    ):
        types[ids == audio] = 3
    return types


def _with_borders(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Token types that count the start and the end of an image as parts of it (Ernie's experts)."""
    types, ids = _zeros_like_ids(draft, inputs), inputs.get("input_ids")
    if types is not None and ids is not None and "image" in draft.modalities:
        for which in ("start", "end"):
            for marker in draft.border("image", which):
                types[ids == marker[0]] = 1
    return types


def _decoder_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    rows = draft.batch_size
    terms = documented_terms(draft, "decoder_input_ids")
    if terms and "*" in terms[0]:  # of several streams of codes (MusicGen)
        rows = documented(draft, "decoder_input_ids", inputs)[1][0]
    return draft.normal_ids(rows * 8, draft.decoder_vocab).reshape(rows, 8)


def _pixels(draft: Draft, inputs: dict[str, Any]) -> Any:
    return draft.pixels()


def _grid(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.tensor([draft.grid()] * draft.batch_size)


def _grid_of_two(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Rows and columns of patches; no frames."""
    import torch

    return torch.tensor([draft.grid()[1:]] * draft.batch_size)


def _merge_sizes(draft: Draft, inputs: dict[str, Any]) -> Any:
    """How many patches per side become one token, for each image."""
    import torch

    merge = draft.settings.number("spatial_merge_size", "merge_size", default=1)
    return torch.full((draft.batch_size,), merge)


def _image_sizes(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    if draft.pixel_layout == "bchw":
        return torch.tensor([[draft.image_size, draft.image_size]] * draft.batch_size)
    size = [draft.tile_rows() * draft.image_size, draft.tile_columns() * draft.image_size]
    return torch.tensor([size] * draft.batch_size)


def _pixel_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    pixels = inputs.get("pixel_values")
    if pixels is None:
        return None
    # As an index, whole numbers would mean places and take gigabytes where a mask is meant.
    masks = [
        p for name, p in draft.parameters.items() if name.startswith("pixel_") and "mask" in name
    ]
    selects = any("Bool" in str(parameter.annotation) for parameter in masks)
    dtype = torch.bool if selects else torch.long
    if pixels.dim() == 3:
        return torch.ones(pixels.shape[:2], dtype=dtype)
    shape = (*pixels.shape[:-3], *pixels.shape[-2:])
    return torch.ones(shape, dtype=dtype)


def _aspect_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.ones((draft.batch_size, 1), dtype=torch.long)


def _aspect_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    tiles = draft.settings.number("max_num_tiles", default=4)
    mask = torch.zeros((draft.batch_size, 1, tiles), dtype=torch.long)
    mask[..., 0] = 1
    return mask


def _cross_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    tiles = draft.settings.number("max_num_tiles", default=4)
    length = draft.input_ids().shape[1]
    return torch.ones((draft.batch_size, length, 1, tiles), dtype=torch.long)


def _spatial_shapes(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.tensor([[4, 4]] * draft.batch_size)


def _patch_positions(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    steps = torch.arange(4)
    points = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(1, 16, 2)
    return points.repeat(draft.batch_size, 1, 1)


def _flattened_patches(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Pix2Struct: row and column (from 1), then the numbers of the patch."""
    import torch

    size = draft.patch_dim or draft.channels * draft.patch**2
    values = torch.rand((draft.batch_size, 16, size), generator=draft.generator())
    positions = (_patch_positions(draft, inputs) + 1).to(values.dtype)
    return torch.cat([positions, values], dim=-1)


def _bbox(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    shape = (*draft.input_ids().shape, 4)
    box = torch.tensor([1, 1, 9, 9]) if "bbox" in draft.parameters else torch.zeros(4)
    return box.expand(shape).clone()


def _audio(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    b = draft.batch_size
    shapes = {
        "mel_frames": (b, draft.mel, draft.frames),
        "frames_mel": (b, draft.frames, draft.mel),
        "b1_frames_mel": (b, 1, draft.frames, draft.mel),
        "wave": (b, draft.samples),
        "b1_wave": (b, 1, draft.samples),
    }
    return torch.randn(shapes[draft.audio_layout], generator=draft.generator()) * 0.1


def _audio_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    dtype = torch.bool if "boolean masks" in draft.tried else torch.long
    return torch.ones((draft.batch_size, draft.frames), dtype=dtype)


def _qformer_ids(draft: Draft, inputs: dict[str, Any]) -> Any:
    vocab = draft.settings.number("vocab_size", within="qformer", default=64)
    return draft.normal_ids(draft.batch_size * 6, vocab).reshape(draft.batch_size, 6)


def _qformer_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.ones((draft.batch_size, 6), dtype=torch.long)


def _masked_positions(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    count = draft.masked or (draft.image_size // draft.patch) ** 2
    mask = torch.zeros((draft.batch_size, count), dtype=torch.bool)
    mask[:, : max(1, count // 2)] = True
    return mask


def _true(draft: Draft, inputs: dict[str, Any]) -> Any:
    return True


def _video(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    if draft.pixel_layout == "grid":
        return draft.pixels()
    h = draft.image_size
    shape = (draft.batch_size, draft.settings.number("num_frames", default=2), draft.channels, h, h)
    return torch.rand(shape, generator=draft.generator()) * 2 - 1


def _image_flags(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.ones((draft.batch_size, 1), dtype=torch.long)


def _image_attention(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    return torch.ones((*draft.input_ids().shape, 1), dtype=torch.long)


def _image_places(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Where the features of an image go, for models that mark places instead of tokens."""
    import torch

    mask = torch.zeros(draft.input_ids().shape, dtype=torch.long)
    count = draft.settings.number("latent_query_num", "num_query_tokens", default=8)
    mask[:, 2 : 2 + (draft.places or count)] = 1
    return mask


Maker = Callable[["Draft", dict[str, Any]], Any]
MAKERS: dict[str, Maker] = {
    "pixel_values": _pixels,
    "pixel_values_videos": _video,
    "image_grid_thw": _grid,
    "grid_thw": _grid,
    "video_grid_thw": _grid,
    "image_grid_hw": _grid_of_two,
    "image_grid_hws": _grid_of_two,
    "grid_hw": _grid_of_two,
    "grid_hws": _grid_of_two,
    "target_sizes": _grid_of_two,
    "image_merge_sizes": _merge_sizes,
    "image_sizes": _image_sizes,
    "pixel_attention_mask": _pixel_mask,
    "pixel_mask": _pixel_mask,
    "aspect_ratio_ids": _aspect_ids,
    "aspect_ratio_mask": _aspect_mask,
    "cross_attention_mask": _cross_mask,
    "spatial_shapes": _spatial_shapes,
    "pixel_position_ids": _patch_positions,
    "image_position_ids": _patch_positions,
    "flattened_patches": _flattened_patches,
    "image_flags": _image_flags,
    "image_attention_mask": _image_attention,
    "image_embeds_position_mask": _image_places,
    "bool_masked_pos": _masked_positions,
    "input_features": _audio,
    "input_values": _audio,
    "feature_attention_mask": _audio_mask,
    "input_features_mask": _audio_mask,
    "input_ids": _input_ids,
    "attention_mask": _ones_like_ids,
    "bbox": _bbox,
    "token_type_ids": _zeros_like_ids,
    "mm_token_type_ids": _zeros_like_ids,
    "moe_mm_token_type_ids": _with_borders,
    "decoder_input_ids": _decoder_ids,
    "qformer_input_ids": _qformer_ids,
    "qformer_attention_mask": _qformer_mask,
    "return_loss": _true,
}
