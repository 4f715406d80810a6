"""What towers say about the pictures and the sound they are given, and the draft changed by it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_doctor.tiny_model.batch.draft import Draft

_PRODUCT = re.compile(
    r"mat1 and mat2 shapes cannot be multiplied \(\d+x(?P<got>\d+) and (?P<want>\d+)x\d+\)"
)
_MULTIPLE = re.compile(
    r"(?:length|frames)\b\D*(?P<got>\d+)\D* (?:is )?not (?:a )?multiple of (?P<of>\d+)"
    r"|multiple of .*?(?P<of_2>\d+)\)?, but got (?P<got_2>\d+)"
)
_UNEQUAL = re.compile(r"[Nn]umber of audio tokens does not match number of audio features")
_WIDTHS = re.compile(
    r"size of tensor a \((?P<got>\d+)\) must match the size of tensor b \((?P<want>\d+)\) "
    r"at non-singleton dimension 2"
)


def pictures(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    """Pictures cut into patches before they are given: each a row of numbers, where a linear layer
    embeds them, or a small picture, where a convolution does."""
    if "pixel_values" not in inputs:
        return ""
    product = _PRODUCT.search(text)
    whole = draft.pixel_layout in ("bchw", "bnchw")
    if product and whole and int(product["got"]) == inputs["pixel_values"].shape[-1]:
        want = int(product["want"])
        if want % draft.channels == 0 and want >= draft.channels * 16:
            draft.tried |= {draft.pixel_layout, "patches"}
            draft.pixel_layout, draft.patch_dim = "patches", want
            return f"pixel_values as patches of {want} numbers"
    small = re.search(r"input to conv2d, but got|unpack \(expected 5, got", text)
    if small and draft.pixel_layout == "grid":
        draft.tried |= {"grid", "grid_patches"}
        draft.pixel_layout = "grid_patches"
        return "pixel_values as one small picture per patch"
    return ""


def too_few_frames(draft: Draft, text: str) -> str:
    """A convolution over time that asks for more frames than there are; larger ones do not help."""
    said = re.search(
        r"padded input size per channel: \((\d+) x (\d+) x (\d+)\)\. "
        r"Kernel size: \((\d+) x (\d+) x (\d+)\)",
        text,
    )
    if said is None or "image" not in draft.modalities:
        return ""
    depth, *size, kernel_depth, rows, columns = map(int, said.groups())
    lacking = kernel_depth - depth
    if lacking > 0 and size[0] >= rows and size[1] >= columns and draft.pixel_layout == "bnchw":
        draft.images = draft.images_per_row() + max(lacking, kernel_depth - 1)
        return f"{draft.images} frames"
    return ""


def unmasked(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    """Sound without the mask of its frames, where a mask is optional and as many features as the
    tower gives were too many: some mean one of the features that are left of the frames."""
    equal = re.search(r"tokens: (\d+),? features:? \1$", text)
    meant = bool(equal and "audio" in draft.recounted) or bool(_UNEQUAL.search(text))
    if "audio" not in draft.modalities or not meant:
        return ""
    for name in ("input_features_mask", "feature_attention_mask"):
        if name in inputs and draft.parameters[name].default is None:
            draft.exclude.add(name)
            return f"left out {name}"
    return ""


def sound(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    """Lengths that a tower can cut into equal parts, and how many numbers a frame has."""
    if "audio" not in draft.modalities:
        return ""
    if "boolean mask" in text and "boolean masks" not in draft.tried:
        draft.tried.add("boolean masks")
        return "masks of sound as booleans"
    said = _MULTIPLE.search(text)
    if said:
        part, got = int(said["of"] or said["of_2"]), int(said["got"] or said["got_2"])
        fitting = max(1, -(-got // max(part, 1))) * part
        if "input_values" in inputs and got == draft.samples and part > 0:
            draft.samples = fitting
            return f"{fitting} samples of sound"
        if got == draft.mel != draft.frames and draft.audio_layout == "frames_mel":
            draft.audio_layout = "mel_frames"  # it took the one for the other
            return "audio as mel_frames"
        if part > 0 and fitting != draft.frames:
            draft.frames = fitting
            return f"{fitting} audio frames"
    said = _WIDTHS.search(text)
    if said and int(said["got"]) == draft.mel and draft.audio_layout == "frames_mel":
        draft.mel = int(said["want"])
        return f"{draft.mel} audio features per frame"
    return ""
