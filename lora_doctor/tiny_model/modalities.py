"""The one table of modalities: which arguments of a forward belong to text, images, audio, video.

Everything that asks "does this model take images", "does this batch hold audio" or "which arguments
go with an image" reads it here. It is no table of the paths of submodules and of sections of a
config: what tells a vision tower by its path (``model/tower_seeds.py``) or the section that holds
the size of an image (``batch/image_geometry.py``) has words of its own, because a ``backbone`` or
an ``encoder`` is one of vision in some places only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_doctor.results.structure import TowerKind


@dataclass(frozen=True)
class Modality:
    """One kind of input. Arguments go by the names that most models have for them."""

    name: str
    #: The kind of the tower that reads it.
    tower: TowerKind
    #: A forward that names one of these takes the modality.
    taken_by: tuple[str, ...]
    #: A batch that has one of these holds it: `taken_by`, what only a decoder reads, and what a
    #: batch of the user's own may have instead.
    carried_by: tuple[str, ...]
    #: Arguments that are made without being required wherever a batch is to hold the modality.
    made_by_default: tuple[str, ...]
    #: What a model's `get_<name>_features` may take, in the order in which they are made.
    tower_arguments: tuple[str, ...] = ()
    #: A regular expression: how config entries and arguments for this modality are named.
    words: str = ""


_IMAGE_GRIDS = (
    "image_grid_thw",
    "grid_thw",
    "image_grid_hw",
    "image_grid_hws",
    "grid_hw",
    "grid_hws",
)

TEXT = Modality(
    "text",
    tower="language",
    taken_by=("input_ids", "qformer_input_ids"),
    carried_by=("input_ids", "qformer_input_ids", "decoder_input_ids", "inputs_embeds"),
    made_by_default=("input_ids", "attention_mask", "bbox", "return_loss"),
)
IMAGE = Modality(
    "image",
    tower="vision",
    taken_by=("pixel_values", "flattened_patches"),
    carried_by=("pixel_values", "flattened_patches", "images"),
    made_by_default=(
        "pixel_values",
        "flattened_patches",
        *_IMAGE_GRIDS,
        "image_sizes",
        "pixel_attention_mask",
        "aspect_ratio_ids",
        "aspect_ratio_mask",
        "cross_attention_mask",
        "spatial_shapes",
        "target_sizes",
        "image_merge_sizes",
        "qformer_input_ids",
        "qformer_attention_mask",
        "pixel_position_ids",
        "image_position_ids",
        "image_embeds_position_mask",
        "mm_token_type_ids",
        "moe_mm_token_type_ids",
    ),
    tower_arguments=(
        "pixel_values",
        "image_grid_thw",
        "image_grid_hw",
        "image_grid_hws",
        "target_sizes",
        "image_merge_sizes",
        "grid_hw",
        "grid_hws",
        "image_sizes",
        "pixel_attention_mask",
        "spatial_shapes",
        "pixel_position_ids",
        "image_position_ids",
    ),
    words=r"images?|img|media|vision",
)
AUDIO = Modality(
    "audio",
    tower="audio",
    taken_by=("input_features", "input_values"),
    carried_by=("input_features", "input_values"),
    made_by_default=(
        "input_features",
        "input_values",
        "feature_attention_mask",
        "input_features_mask",
    ),
    tower_arguments=(
        "input_features",
        "feature_attention_mask",
        "input_features_mask",
        "input_values",
        "attention_mask",
    ),
    words=r"audios?|speech|sound",
)
VIDEO = Modality(
    "video",
    tower="vision",
    taken_by=("pixel_values_videos",),
    carried_by=("pixel_values_videos",),
    made_by_default=("pixel_values_videos", "video_grid_thw"),
    tower_arguments=("pixel_values_videos", "video_grid_thw"),
    words=r"videos?",
)

#: All of them, in the order in which a batch names what it holds.
MODALITIES = (TEXT, IMAGE, AUDIO, VIDEO)
BY_NAME = {modality.name: modality for modality in MODALITIES}
#: Those that stand in a text as placeholder tokens, in the order in which they stand there.
WITH_PLACEHOLDERS = (IMAGE, VIDEO, AUDIO)


def taken(arguments: Collection[str]) -> set[str]:
    """Names of the modalities that a forward with these arguments takes."""
    return {one.name for one in MODALITIES if any(name in arguments for name in one.taken_by)}


def carried(arguments: Collection[str]) -> list[str]:
    """Names of the modalities that a batch with these arguments holds."""
    return [one.name for one in MODALITIES if any(name in arguments for name in one.carried_by)]


def is_made_by_default(argument: str, modalities: Collection[str]) -> bool:
    """Whether a batch of `modalities` gets `argument` though nothing requires it."""
    return any(argument in BY_NAME[name].made_by_default for name in modalities)
