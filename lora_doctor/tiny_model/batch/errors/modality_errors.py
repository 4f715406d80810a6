"""Errors about images and audio: how they are laid out, and how many placeholders they need.

Each function changes the draft as the error calls for and says how; an empty text where the error
is not about that.
"""

from __future__ import annotations

import re
from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.errors.raised import Raised
from lora_doctor.tiny_model.batch.image_geometry import images_per_sample, patch_elements

_PRODUCT = re.compile(
    r"mat1 and mat2 shapes cannot be multiplied \(\d+x(?P<got>\d+) and (?P<want>\d+)x\d+\)"
)
_MULTIPLE = re.compile(
    r"(?:length|frames)\b\D*(?P<got>\d+)\D* (?:is )?not (?:a )?multiple of (?P<of>\d+)"
    r"|multiple of .*?(?P<of_2>\d+)\)?, but got (?P<got_2>\d+)"
)
_UNEQUAL = re.compile(r"[Nn]umber of audio tokens does not match number of audio features")
_EQUAL = re.compile(r"tokens: (\d+),? features:? \1$")
_WIDTHS = re.compile(
    r"size of tensor a \((?P<got>\d+)\) must match the size of tensor b \((?P<want>\d+)\) "
    r"at non-singleton dimension 2"
)
_KERNEL = re.compile(
    r"padded input size per channel: \((\d+) x (\d+) x (\d+)\)\. "
    r"Kernel size: \((\d+) x (\d+) x (\d+)\)"
)
_TOKENS_AND_FEATURES = (
    r"tokens:?\s*(?P<tokens>\d+)[,;. ]+(and )?(length of )?\w*\s*features:?\s*(?P<features>\d+)",
    r"n_\w*tokens=?:?\s*(?P<tokens>\d+).*?n_\w*features=?:?\s*(?P<features>\d+)",
    r"value tensor of shape \[(?P<features>\d+), ?\d+\].*"
    r"result of shape \[(?P<tokens>\d+), ?\d+\]",
    r"tokens \(?(?P<tokens>\d+)\)?.*?features \(?(?P<features>\d+)\)?",
    r"features \(?(?P<features>\d+)\)?.*?tokens \(?(?P<tokens>\d+)\)?",
)


def has_equal_counts(raised: Raised) -> bool:
    """Whether there are as many placeholders as features, and only their widths differ."""
    return _EQUAL.search(raised.text) is not None


def image_patches(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """Images cut into patches before they are given: each a row of values, where a linear layer
    embeds them, or a small image, where a convolution does."""
    if "pixel_values" not in inputs:
        return ""
    product = _PRODUCT.search(raised.text)
    whole = draft.image.layout in ("bchw", "bnchw")
    if product and whole and int(product["got"]) == inputs["pixel_values"].shape[-1]:
        want = int(product["want"])
        if want % draft.image.channels == 0 and want >= draft.image.channels * 16:
            draft.image.use("patches")
            draft.image.patch_dim = want
            return f"pixel_values as patches of {want} numbers"
    small = re.search(r"input to conv2d, but got|unpack \(expected 5, got", raised.text)
    if small and draft.image.layout == "grid":
        draft.image.use("grid_patches")
        return "pixel_values as one small picture per patch"
    return ""


def image_size(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """The size that a model requires, more frames, or larger images where they are too small."""
    text = raised.text
    match = re.search(r"[Ii]mage size.*?match(?:es)? model ?\((\d+) ?[*x,] ?(\d+)", text)
    match = match or re.search(r"expected (?:image )?size \(?(\d+)[*x, ]+(\d+)", text)
    if match and int(match[1]) != draft.image.size:
        draft.image.size = int(match[1])
        return f"images of {draft.image.size} pixels"
    frames = _too_few_frames(draft, text)
    if frames:
        return frames
    too_small = (
        r"([Ii]mage|[Oo]utput) size .*\btoo small|Kernel size can't be greater than actual input"
    )
    if "image" in draft.modalities and re.search(too_small, text) and draft.image.size <= 256:
        draft.image.size *= 2
        return f"images of {draft.image.size} pixels"
    return ""


def _too_few_frames(draft: Draft, text: str) -> str:
    """A convolution over time that needs more frames than there are; larger ones do not help."""
    sizes = _KERNEL.search(text)
    if sizes is None or "image" not in draft.modalities:
        return ""
    depth, *size, kernel_depth, rows, columns = map(int, sizes.groups())
    lacking = kernel_depth - depth
    if lacking > 0 and size[0] >= rows and size[1] >= columns and draft.image.layout == "bnchw":
        draft.image.per_sample = images_per_sample(draft) + max(lacking, kernel_depth - 1)
        return f"{draft.image.per_sample} frames"
    return ""


def audio_mask(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """Audio without the mask of its frames, where a mask is optional and as many features as the
    tower gave were too many: some mean a mask of the features that are left of the frames."""
    recounted = has_equal_counts(raised) and draft.audio.recounted
    if "audio" not in draft.modalities or not (recounted or _UNEQUAL.search(raised.text)):
        return ""
    for name in ("input_features_mask", "feature_attention_mask"):
        if name in inputs and draft.parameters[name].default is None:
            draft.exclude.add(name)
            return f"left out {name}"
    return ""


def audio_shape(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """Lengths that a tower can cut into equal parts, and how many values a frame has."""
    if "audio" not in draft.modalities:
        return ""
    audio, text = draft.audio, raised.text
    if "boolean mask" in text and not audio.bool_masks:
        audio.bool_masks = True
        return "masks of sound as booleans"
    multiple = _MULTIPLE.search(text)
    if multiple:
        part = int(multiple["of"] or multiple["of_2"])
        change = _multiple_of(draft, inputs, part, int(multiple["got"] or multiple["got_2"]))
        if change:
            return change
    widths = _WIDTHS.search(text)
    if widths and int(widths["got"]) == audio.mel_bins and audio.layout == "frames_mel":
        audio.mel_bins = int(widths["want"])
        return f"{audio.mel_bins} audio features per frame"
    return ""


def _multiple_of(draft: Draft, inputs: dict[str, Any], part: int, got: int) -> str:
    """A length of `got` samples or frames that is to be a multiple of `part`."""
    audio = draft.audio
    fitting = max(1, -(-got // max(part, 1))) * part
    if "input_values" in inputs and got == audio.samples and part > 0:
        audio.samples = fitting
        return f"{fitting} samples of sound"
    if got == audio.mel_bins != audio.frames and audio.layout == "frames_mel":
        audio.layout = "mel_frames"  # it took the one for the other
        return "audio as mel_frames"
    if part > 0 and fitting != audio.frames:
        audio.frames = fitting
        return f"{fitting} audio frames"
    return ""


def audio_frames(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """The number of frames that a model requires."""
    match = re.search(r"(?:mel input )?features to (?:be of length )?(\d+)", raised.text)
    if match and "audio" in draft.modalities and int(match[1]) != draft.audio.frames:
        draft.audio.frames = int(match[1])
        return f"{draft.audio.frames} audio frames"
    return ""


def channels(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """How many channels, mel bins or values of a patch the first layer of a tower takes."""
    normed = re.search(
        r"normalized_shape=\[(\d+)\], expected input with shape \[\*, (\d+)\]", raised.text
    )
    if normed and "audio" in draft.modalities and draft.audio.mel_bins != int(normed[1]):
        draft.audio.mel_bins, draft.audio.layout = int(normed[1]), "frames_mel"
        return f"{draft.audio.mel_bins} audio features per frame"
    convolved = re.search(r"to have (\d+) channels?, but got (\d+) channels", raised.text)
    if convolved:
        return _of_convolution(draft, want=int(convolved[1]), got=int(convolved[2]))
    product = _PRODUCT.search(raised.text)
    if product:
        return _of_linear(draft, inputs, want=int(product["want"]), got=int(product["got"]))
    return ""


def _of_convolution(draft: Draft, want: int, got: int) -> str:
    audio = draft.audio
    if "audio" in draft.modalities and got in (audio.mel_bins, audio.frames):
        other = {"mel_frames": "frames_mel", "frames_mel": "mel_frames"}.get(audio.layout)
        if other and want == audio.mel_bins:
            audio.layout = other
            return f"audio as {other}"
        audio.mel_bins = want
        return f"{want} audio features per frame"
    if "image" in draft.modalities and got == draft.image.channels:
        draft.image.channels = want
        return f"{want} image channels"
    return ""


def _of_linear(draft: Draft, inputs: dict[str, Any], want: int, got: int) -> str:
    audio = draft.audio
    flat = draft.image.layout in ("grid", "patches") or "flattened_patches" in inputs
    if "image" in draft.modalities and flat and got == patch_elements(draft):
        draft.image.patch_dim = want
        return f"patches of {want} numbers"
    if "audio" not in draft.modalities:
        return ""
    if got == audio.mel_bins and audio.mel_bins != want:
        audio.mel_bins = want
        return f"{want} audio features per frame"
    if got == audio.frames and audio.layout == "mel_frames":
        audio.layout = "frames_mel"
        return "audio as frames x features"
    return ""


def placeholders(draft: Draft, inputs: dict[str, Any], raised: Raised) -> str:
    """How many placeholders, or marked positions, the features of a sample take."""
    return (
        _recounted(draft, raised.text)
        or _marked_positions(draft, inputs, raised.text)
        or _one_per_image(draft, raised.text)
    )


def _recounted(draft: Draft, text: str) -> str:
    for pattern in _TOKENS_AND_FEATURES:
        match = re.search(pattern, text)
        if not match:
            continue
        tokens, features = int(match["tokens"]), int(match["features"])
        for modality, count in draft.placeholders.items():
            placed = count * draft.batch_size
            if placed and tokens % placed == 0 and tokens != features:
                wanted = features // max(1, tokens // placed) // draft.batch_size
                if wanted and wanted != count:
                    draft.placeholders[modality] = wanted
                    draft.audio.recounted |= modality == "audio"
                    return f"{wanted} {modality} placeholders per sample instead of {count}"
    return ""


def _marked_positions(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    marked = re.search(r"value tensor of shape \[(\d+), ?\d+\].*result of shape \[(\d+), ", text)
    wanted = int(marked[1]) // draft.batch_size if marked else 0
    if "image_embeds_position_mask" not in inputs or wanted in (0, draft.image.positions):
        return ""
    draft.image.positions = wanted
    draft.seq_len = max(draft.seq_len, wanted + 8)
    return f"{wanted} places for features of an image per sample"


def _one_per_image(draft: Draft, text: str) -> str:
    one = re.search(
        r"number of images? tokens is (\d+) while the number of image\D* is (\d+)"
        r"|Number of image tokens in input_ids \((\d+)\) different from num_images",
        text,
    )
    if not one or draft.placeholders.get("image", 0) == 1:
        return ""
    draft.placeholders["image"] = 1
    return "one image placeholder per image"
