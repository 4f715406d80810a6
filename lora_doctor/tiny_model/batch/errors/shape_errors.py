"""Errors about shapes and ranges: dimensions of inputs and masks, lengths, ids beyond a table.

Each function changes the draft as the error calls for and says how; an empty text where the error
is not about that.
"""

from __future__ import annotations

import re
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.errors.raised import Raised

_IMAGE_LAYOUTS = {
    2: ("grid",),
    3: ("patches",),
    4: ("bchw",),
    5: ("bnchw", "bcthw"),
    6: ("tiles",),
}
_AUDIO_LAYOUTS = {2: "wave", 3: "frames_mel", 4: "b1_frames_mel"}
_SMALL_VOCAB = 64


def dimensions(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """How many dimensions images or audio are to have."""
    text = raised.text
    match = re.search(r"unpack \(expected (\d)(?:, got (\d))?\)", text)
    # "Expected 3D (unbatched) or 4D (batched) input to conv2d": images come in batches.
    match = match or re.search(r"\(unbatched\) or (\d)D \(batched\) input to conv2d", text)
    match = match or re.search(r"(?:[Ee]xpected|must be) (?:an? )?(\d)-?D", text)
    if not match:
        return ""
    want = int(match[1])
    several = re.search(r"of shape \(\w+, (\d+), \w*channels", text)
    if several:  # images that belong together (two, of which points are matched)
        draft.image.per_sample = int(several[1])
    if "image" in draft.modalities and "pixel_values" in inputs:
        for layout in _IMAGE_LAYOUTS.get(want, ()):
            if draft.image.is_new(layout) and inputs["pixel_values"].dim() != want:
                draft.image.use(layout)
                return f"pixel_values with {want} dimensions"
    layout = _AUDIO_LAYOUTS.get(want, draft.audio.layout)
    if "audio" in draft.modalities and layout != draft.audio.layout:
        draft.audio.layout = layout
        return f"audio with {want} dimensions"
    return ""


def mask_dimensions(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """`rows, images = pixel_attention_mask.shape`: a mask with fewer dimensions than ours."""
    if "unpack" not in str(raised.exception):
        return ""
    match = re.match(r"([\w\s,*]+?)\s=\s(\w*mask)\.(?:shape|size\(\))", raised.line)
    if match is None or match[2] not in inputs or "*" in match[1]:
        return ""
    wanted = len([name for name in match[1].split(",") if name.strip()])
    if not 0 < wanted < inputs[match[2]].dim():
        return ""
    draft.mask_dims[match[2]] = wanted
    return f"{match[2]} with {wanted} dimensions"


def index_mask(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """`values[mask]` with a mask that has more dimensions than the code selects by."""
    text = str(raised.exception)
    match = re.search(r"shape of the mask \[([\d, ]+)\] at index (\d+) does not match", text)
    if match is None:
        return ""
    shape = tuple(int(number) for number in match[1].split(","))
    indexed = re.search(r"indexed tensor \[\d+, (\d+)", text)
    masked = inputs.get("bool_masked_pos")
    is_that = indexed and masked is not None and tuple(masked.shape) == shape
    if indexed and is_that and not draft.image.masked_patches:
        draft.image.masked_patches = int(indexed[1])  # patches of all frames of a video
        return f"masks over {draft.image.masked_patches} patches"
    for name, value in inputs.items():
        if name.endswith("mask") and tuple(value.shape) == shape and int(match[2]) > 0:
            draft.mask_dims[name] = int(match[2])
            return f"{name} with {match[2]} dimensions"
    return ""


def codebooks(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """Audio as codes of several codebooks: one more dimension of the token ids."""
    known = draft.entries.number("num_codebooks", "num_channels")
    match = re.search(
        r"size of tensor a \(\d+\) must match the size of tensor b \((\d+)\)", raised.text
    )
    ids = inputs.get("input_ids")
    if not match or ids is None or ids.dim() != 2 or not known:
        return ""
    if int(match[1]) in (known, known + 1):
        draft.tokens.codebooks = int(match[1])
        return f"{draft.tokens.codebooks} streams of codes"
    return ""


def lengths(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """A time series whose length the model says. Features that are added to the tokens instead of
    taking the place of some: as many tokens."""
    text = raised.text
    fixed = re.search(r"sequence length \((\d+)\) does(?:n't| not) match .*?\((\d+)\)", text)
    if fixed and int(fixed[1]) == draft.seq_len and not draft.modalities:
        draft.seq_len = int(fixed[2])
        return f"{draft.seq_len} values in a series"
    pieces = re.search(r"shape '\[\d+, -1, (\d+)\]' is invalid for input", text)
    if pieces and not draft.modalities and draft.seq_len % int(pieces[1]):
        draft.seq_len = 2 * int(pieces[1])
        return f"{draft.seq_len} values in a series"
    ids = inputs.get("input_ids")
    match = re.search(
        r"tensor a \((\d+)\) must match the size of tensor b \((\d+)\).* dimension 1$", text
    )
    if match is None or ids is None or any(draft.placeholders.values()):
        return ""
    tokens, features = int(match[1]), int(match[2])
    if tokens == ids.shape[1] == draft.seq_len and "audio" in draft.modalities and features > 1:
        draft.seq_len = features
        return f"{features} tokens, one for each feature of the sound"
    return ""


def id_range(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """Ids beyond an embedding: small ones."""
    if "index out of range" not in raised.text and "out of bounds" not in raised.text:
        return ""
    tokens = draft.tokens
    if tokens.decoder_vocab > _SMALL_VOCAB and "decoder_input_ids" in inputs:
        tokens.decoder_vocab = _SMALL_VOCAB
        return f"decoder tokens below {_SMALL_VOCAB}"
    if tokens.vocab > _SMALL_VOCAB and "input_ids" in inputs and not draft.placeholders:
        tokens.vocab = _SMALL_VOCAB
        return f"tokens below {_SMALL_VOCAB}"
    return ""
