"""Which maker makes which forward argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.values import audio, image, text

#: Gets the draft and the arguments made so far; None leaves the argument out.
Maker = Callable[[Draft, dict[str, Any]], Any]
MAKERS: Mapping[str, Maker] = {
    "pixel_values": image.pixel_values,
    "pixel_values_videos": image.pixel_values_videos,
    "image_grid_thw": image.grid_thw,
    "grid_thw": image.grid_thw,
    "video_grid_thw": image.grid_thw,
    "image_grid_hw": image.grid_hw,
    "image_grid_hws": image.grid_hw,
    "grid_hw": image.grid_hw,
    "grid_hws": image.grid_hw,
    "target_sizes": image.grid_hw,
    "image_merge_sizes": image.image_merge_sizes,
    "image_sizes": image.image_sizes,
    "pixel_attention_mask": image.pixel_mask,
    "pixel_mask": image.pixel_mask,
    "aspect_ratio_ids": image.aspect_ratio_ids,
    "aspect_ratio_mask": image.aspect_ratio_mask,
    "cross_attention_mask": image.cross_attention_mask,
    "spatial_shapes": image.spatial_shapes,
    "pixel_position_ids": image.patch_positions,
    "image_position_ids": image.patch_positions,
    "flattened_patches": image.flattened_patches,
    "image_flags": image.image_flags,
    "image_attention_mask": image.image_attention_mask,
    "image_embeds_position_mask": image.image_embeds_position_mask,
    "bool_masked_pos": image.bool_masked_pos,
    "input_features": audio.audio_values,
    "input_values": audio.audio_values,
    "feature_attention_mask": audio.frames_mask,
    "input_features_mask": audio.frames_mask,
    "input_ids": text.input_ids,
    "attention_mask": text.attention_mask,
    "bbox": text.bbox,
    "token_type_ids": text.token_type_ids,
    "mm_token_type_ids": text.token_type_ids,
    "moe_mm_token_type_ids": text.moe_mm_token_type_ids,
    "decoder_input_ids": text.decoder_input_ids,
    "qformer_input_ids": text.qformer_input_ids,
    "qformer_attention_mask": text.qformer_attention_mask,
    "return_loss": text.return_loss,
}
