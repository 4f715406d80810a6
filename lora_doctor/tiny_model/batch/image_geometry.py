"""Sizes of images that follow from a draft and the config: patches, grids, tiles, frames."""

from __future__ import annotations

from lora_doctor.tiny_model.batch.config_entries import ConfigEntries
from lora_doctor.tiny_model.batch.draft import Draft

#: Paths of configs that say how large images and patches are.
VISION_CONFIGS = r"vision|image|visual|backbone|encoder|^$"


def patch_size(entries: ConfigEntries) -> int:
    """Pixels per side of one patch."""
    return entries.number("patch_size", within=VISION_CONFIGS, default=16)


def grid(draft: Draft) -> tuple[int, int, int]:
    """Frames, rows and columns of patches of one image, in the merge factor of the model."""
    merge = draft.entries.number("spatial_merge_size", "merge_size", "merge_kernel_size", default=2)
    side = max(2, -(-4 // merge)) * merge if merge > 1 else 4
    side = max(side, draft.image.least_grid_side)
    return 1, side, side


def patch_elements(draft: Draft) -> int:
    """Elements of one flattened patch: of all channels and, in videos, of several frames."""
    if draft.image.patch_dim:
        return draft.image.patch_dim
    has_frames = any(name.endswith("_thw") for name in draft.parameters)
    frames = draft.entries.number("temporal_patch_size", default=1) if has_frames else 1
    return draft.image.channels * frames * patch_size(draft.entries) ** 2


def images_per_sample(draft: Draft) -> int:
    """Images per sample in a five-dimensional layout: frames, tiles of one image, as many as
    an error called for, or one."""
    if is_tiled(draft):
        rows, columns = tiles(draft)
        return 1 + rows * columns  # the overview comes first
    if draft.image.per_sample:
        return draft.image.per_sample
    frames = draft.entries.number("num_frames")
    return frames if frames and "input_ids" not in draft.parameters else 1


def is_tiled(draft: Draft) -> bool:
    """Whether images are cut into tiles by their size (LLaVA-NeXT)."""
    return "image_sizes" in draft.parameters and _smallest_resolution(draft.entries) is not None


def tiles(draft: Draft) -> tuple[int, int]:
    """Rows and columns of tiles of one image."""
    height, width = _smallest_resolution(draft.entries) or (0, 0)
    return max(1, height // draft.image.size), max(1, width // draft.image.size)


def _smallest_resolution(entries: ConfigEntries) -> tuple[int, int] | None:
    """Height and width in pixels of the smallest image that is cut into tiles."""
    for node in entries.nodes():
        points = node.values.get("image_grid_pinpoints")
        if isinstance(points, (list, tuple)) and points:
            smallest = min(points, key=lambda p: p[0] * p[1])
            return int(smallest[0]), int(smallest[1])
    return None
