"""The first draft of a batch: sizes and layouts from the config and the modules of a model."""

from __future__ import annotations

import inspect
import re
from typing import Any

from lora_doctor.nn.embeddings import input_embeddings
from lora_doctor.tiny_model.batch.collators import sent_by_processor
from lora_doctor.tiny_model.batch.config_entries import ConfigEntries
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.image_geometry import VISION_CONFIGS, is_tiled, patch_size
from lora_doctor.tiny_model.batch.values.documented import documented_terms

_LARGEST_IMAGE = 512  # pixels per side; where a config has more, a few patches do
_MOST_CHANNELS = 16  # more are features inside a tower, not those of an image


def first_draft(
    model: Any,
    parameters: dict[str, inspect.Parameter],
    modalities: set[str],
    *,
    batch_size: int = 2,
    seq_len: int = 16,
    seed: int = 0,
) -> Draft:
    """A draft of a batch with these modalities, before anything was run.

    Args:
        parameters: those of the forward of `model`.
        batch_size: samples.
        seq_len: text tokens per sample.
    """
    entries = ConfigEntries(getattr(model, "config", None))
    draft = Draft(model, parameters, entries, batch_size, seq_len, seed, modalities)
    _guess_images(draft)
    positions = entries.number("max_source_positions", within=r"audio|encoder|^$")
    _guess_audio(draft, positions)
    draft.tokens.vocab = _embedding_rows(draft)
    draft.tokens.decoder_vocab = entries.number("decoder_vocab_size") or _decoder_rows(draft)
    draft.image.layout = _image_layout(draft)
    draft.audio.layout = _audio_layout(draft)
    fixed = entries.number("max_length")  # frames of a spectrogram cut in patches (AST's kind)
    if draft.audio.layout == "frames_mel" and not positions and fixed > draft.audio.frames:
        draft.audio.frames = fixed
    if "image" in modalities and "token_type_ids" in draft.parameters:
        draft.sent = sent_by_processor(model)
    if documented_terms(draft, "input_ids")[1:-1] == ("num_choices",):
        draft.choices = 2
    return draft


def _guess_images(draft: Draft) -> None:
    entries, image = draft.entries, draft.image
    image.channels = entries.number("num_channels", "in_channels", "in_chans", default=3)
    if image.channels > _MOST_CHANNELS:
        image.channels = 3
    image.size = entries.number(
        "image_size", "img_size", "input_size", "resolution", "max_image_size",
        within=VISION_CONFIGS,
    )  # fmt: skip
    if not image.size or image.size > _LARGEST_IMAGE:
        patch = patch_size(entries)
        image.size = 4 * patch if 8 <= patch <= 64 else 64


def _guess_audio(draft: Draft, positions: int) -> None:
    """`positions`: of the encoder, which often come after a convolution with a stride of 2."""
    entries, audio = draft.entries, draft.audio
    audio.mel_bins = entries.number(
        "num_mel_bins", "input_feat_per_channel", "n_mel_bins", "n_mels"
    ) or entries.number("input_feat_size", "input_dim", "feature_size", default=80)
    audio.frames = 2 * positions if 0 < positions <= 1500 else 64


def _embedding_rows(draft: Draft) -> int:
    rows = getattr(input_embeddings(draft.model), "num_embeddings", None)
    if isinstance(rows, int) and rows > 1:
        return rows
    return draft.entries.number("vocab_size", "n_vocab", "text_vocab_size", default=64)


def _decoder_rows(draft: Draft) -> int:
    try:
        decoder = draft.model.get_decoder()
        rows = getattr(decoder.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError, TypeError, KeyError):
        rows = None
    if isinstance(rows, int) and rows > 1:
        return rows
    inner = draft.entries.number("vocab_size", within=r"decoder|text|generator")
    return inner or draft.entries.number("vocab_size", default=draft.tokens.vocab)


def _image_layout(draft: Draft) -> str:
    names = draft.parameters
    if any(re.search(r"grid_(thw|hw)s?$", name) for name in names):
        return "grid"
    if "target_sizes" in names:
        return "strip"
    if "spatial_shapes" in names or "pixel_position_ids" in names:
        return "patches"
    if "aspect_ratio_ids" in names:
        return "tiles"
    if "pixel_attention_mask" in names or "image_num_patches" in names or is_tiled(draft):
        return "bnchw"
    if draft.entries.number("num_frames") and "input_ids" not in names:
        return "bnchw"
    return "bchw"


def _audio_layout(draft: Draft) -> str:
    if "input_features" not in draft.parameters:
        return "frames_mel" if draft.entries.number("num_mel_bins") else "wave"
    from torch.nn import Conv1d

    for _, module in draft.model.named_modules():
        if isinstance(module, Conv1d):
            return "mel_frames" if module.in_channels == draft.audio.mel_bins else "frames_mel"
    return "frames_mel"
