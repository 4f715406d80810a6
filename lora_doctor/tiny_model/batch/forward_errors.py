"""Reading what a model says about its inputs, and changing the draft accordingly."""

from __future__ import annotations

import linecache
import re
import traceback
from typing import Any

from lora_doctor.results.note import Note
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.makers import MAKERS
from lora_doctor.tiny_model.batch.modality_errors import pictures, sound, too_few_frames, unmasked
from lora_doctor.tiny_model.batch.unknown import can_guess

_LAYOUTS = {3: ("patches",), 4: ("bchw",), 5: ("bnchw", "bcthw"), 6: ("tiles",), 2: ("grid",)}


def answer(draft: Draft, inputs: dict[str, Any], error: BaseException) -> bool:
    """Change `draft` by what `error` says; False where nothing is left to try."""
    text = " ".join(str(error).split())
    for common, own in draft.own_names.items():
        text = text.replace(own, common)
    if re.search(r"tokens: (\d+),? features:? \1$", text):
        # As many as asked for, but of another width: the config is wrong, not the batch
        note = unmasked(draft, inputs, text)
        draft.notes += [Note("step", note)] if note else []
        draft.blind = draft.blind or error
        return bool(note)
    readers = (
        *(pictures, sound, unmasked, _arguments, _placeholders, _image, _audio, _channels, _codes),
        *(_lengths, _range, _unpack),
    )
    for reader in readers:
        by_line = _BY_LINE.get(reader)  # the line that raised tells more than the text
        note = by_line(draft, inputs, error) if by_line else ""
        note = note or reader(draft, inputs, text)
        if note:
            _note(draft, note, f"{type(error).__name__}: {text[:120]}")
            draft.blind = None
            return True
    draft.blind = draft.blind or error  # what was said before the guessing began
    made = _made_inside(draft, inputs, error)
    if made:
        _note(draft, made, f"{type(error).__name__}: {text[:120]}")
        return True
    return _alternative(draft, text)


def _note(draft: Draft, done: str, objection: str) -> None:
    """Note what was changed, and what the model had objected to."""
    draft.notes.append(Note("objection", f"{done} ({objection})", objection))


def _arguments(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", text)
    if unexpected and unexpected[1] in inputs:
        draft.exclude.add(unexpected[1])
        return f"left out {unexpected[1]}"
    if re.search(r"batch sizes? > 1", text) and draft.batch_size > 1:
        draft.batch_size = 1  # no padding token: a classifier cannot find the last word of a row
        return "one sample"
    if re.search(r"at least one <?eos>? token|index -1 .* size 0$", text) and not draft.last_id:
        draft.last_id = draft.settings.number("eos_token_id")
        return f"token {draft.last_id} (end of sequence) last" if draft.last_id else ""
    both = re.search(r"both.*?(\w+)`? and `?(\w+)", text)
    if both and both[1] in inputs and both[2] in inputs:
        main = getattr(draft.model, "main_input_name", "")
        out = both[2] if both[1] == main or both[2] != main else both[1]
        draft.exclude.add(out)
        return f"left out {out}"
    about_cache = re.search(r"cache|past_key_values", text, re.IGNORECASE)
    if about_cache and draft.can_do_without_cache():
        draft.extra["use_cache"] = False
        return "use_cache=False"
    missing = re.search(r"missing \d+ required .*?argument", text)
    asks = missing or re.search(
        r"(have to|must|need to|should|please) (be )?"
        r"(specify|provide|pass|given|provided|specified)"
        r"|is required|are required|(cannot|must not|should not) be `?None|is None"
        r"|not provided|No \w+ provided",
        text,
        re.IGNORECASE,
    )
    if asks:
        for name in re.findall(r"\w+", text):
            if name == "input_ids" and name not in draft.parameters:
                name = "decoder_input_ids"  # said by the decoder behind another tower
            known = name in inputs or name in draft.exclude or name in draft.include
            if (name in MAKERS or can_guess(draft, name)) and not known:
                draft.include.add(name)
                return f"added {name}"
    return ""


def _read_as_none(draft: Draft, inputs: dict[str, Any], error: BaseException) -> str:
    """An optional argument that the code goes on to use: it stands in the line that raised."""
    if "NoneType" not in str(error):
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for name in re.findall(r"\w+", frame.line or ""):
            known = name in inputs or name in draft.exclude or name in draft.include
            if name in draft.parameters and not known and can_guess(draft, name):
                draft.include.add(name)
                return f"added {name}"
    return ""


def _made_inside(draft: Draft, inputs: dict[str, Any], error: BaseException) -> str:
    """An optional argument that forward makes from the others where it is not given, and that it
    could not make (`global_attention_mask = ...`, Longformer's, from three separators)."""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.name != "forward" or frame.lineno is None:
            continue
        # A statement may go over some lines, the last of which raised.
        for number in range(frame.lineno, max(0, frame.lineno - 8), -1):
            made = re.match(r"\s*(\w+) = ", linecache.getline(frame.filename, number))
            name = made[1] if made else ""
            known = name in inputs or name in draft.exclude or name in draft.include
            if name in draft.parameters and not known and can_guess(draft, name):
                draft.include.add(name)
                return f"added {name}"
            if made:
                break
    return ""


def _mask_dims(draft: Draft, inputs: dict[str, Any], error: BaseException) -> str:
    """`rows, images = pixel_attention_mask.shape`: a mask with fewer dimensions than ours."""
    if "unpack" not in str(error):
        return ""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    match = re.match(r"([\w\s,*]+?)\s=\s(\w*mask)\.(?:shape|size\(\))", line)
    if match is None or match[2] not in inputs or "*" in match[1]:
        return ""
    wanted = len([name for name in match[1].split(",") if name.strip()])
    if not 0 < wanted < inputs[match[2]].dim():
        return ""
    draft.mask_dims[match[2]] = wanted
    return f"{match[2]} with {wanted} dimensions"


def _choices(draft: Draft, inputs: dict[str, Any], error: BaseException) -> str:
    """`logits.view(-1, num_choices)`: each sample is several texts to choose from."""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    if draft.choices or not re.search(r"\bnum_choices\b", line):
        return ""
    draft.choices = 2
    return "two texts per sample to choose from"


def _index_mask(draft: Draft, inputs: dict[str, Any], error: BaseException) -> str:
    """`values[mask]` with a mask that has more dimensions than the code selects by."""
    match = re.search(r"shape of the mask \[([\d, ]+)\] at index (\d+) does not match", str(error))
    if match is None:
        return ""
    shape = tuple(int(number) for number in match[1].split(","))
    indexed = re.search(r"indexed tensor \[\d+, (\d+)", str(error))
    places = inputs.get("bool_masked_pos")
    if indexed and places is not None and tuple(places.shape) == shape and not draft.masked:
        draft.masked = int(indexed[1])  # patches of all frames of a video
        return f"masks over {draft.masked} patches"
    for name, value in inputs.items():
        if name.endswith("mask") and tuple(value.shape) == shape and int(match[2]) > 0:
            draft.mask_dims[name] = int(match[2])
            return f"{name} with {match[2]} dimensions"
    return ""


def _lengths(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    """Features that are added to the tokens instead of taking the place of some: as many tokens.
    A series whose length the model says."""
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
    if match is None or ids is None or any(draft.features.values()):
        return ""
    tokens, features = int(match[1]), int(match[2])
    if tokens == ids.shape[1] == draft.seq_len and "audio" in draft.modalities and features > 1:
        draft.seq_len = features
        return f"{features} tokens, one for each feature of the sound"
    return ""


def _placeholders(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    pairs = (
        r"tokens:?\s*(?P<tokens>\d+)[,;. ]+(and )?(length of )?\w*\s*"
        r"features:?\s*(?P<features>\d+)",
        r"n_\w*tokens=?:?\s*(?P<tokens>\d+).*?n_\w*features=?:?\s*(?P<features>\d+)",
        r"value tensor of shape \[(?P<features>\d+), ?\d+\].*"
        r"result of shape \[(?P<tokens>\d+), ?\d+\]",
        r"tokens \(?(?P<tokens>\d+)\)?.*?features \(?(?P<features>\d+)\)?",
        r"features \(?(?P<features>\d+)\)?.*?tokens \(?(?P<tokens>\d+)\)?",
    )
    for pattern in pairs:
        match = re.search(pattern, text)
        if not match:
            continue
        tokens, features = int(match["tokens"]), int(match["features"])
        for kind, count in draft.features.items():
            placed = count * draft.batch_size
            if placed and tokens % placed == 0 and tokens != features:
                wanted = features // max(1, tokens // placed) // draft.batch_size
                if wanted and wanted != count:
                    draft.features[kind] = wanted
                    draft.recounted.add(kind)
                    return f"{wanted} {kind} placeholders per sample instead of {count}"
    marked = re.search(r"value tensor of shape \[(\d+), ?\d+\].*result of shape \[(\d+), ", text)
    wanted = int(marked[1]) // draft.batch_size if marked else 0
    if "image_embeds_position_mask" in inputs and wanted not in (0, draft.places):
        draft.places = wanted
        draft.seq_len = max(draft.seq_len, wanted + 8)
        return f"{wanted} places for features of an image per sample"
    one = re.search(
        r"number of images? tokens is (\d+) while the number of image\D* is (\d+)"
        r"|Number of image tokens in input_ids \((\d+)\) different from num_images",
        text,
    )
    if one and draft.features.get("image", 0) != 1:
        draft.features["image"] = 1
        return "one image placeholder per image"
    return ""


def _image(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    match = re.search(r"[Ii]mage size.*?match(?:es)? model ?\((\d+) ?[*x,] ?(\d+)", text)
    match = match or re.search(r"expected (?:image )?size \(?(\d+)[*x, ]+(\d+)", text)
    if match and int(match[1]) != draft.image_size:
        draft.image_size = int(match[1])
        return f"images of {draft.image_size} pixels"
    frames = too_few_frames(draft, text)
    if frames:
        return frames
    small = (
        r"([Ii]mage|[Oo]utput) size .*\btoo small|Kernel size can't be greater than actual input"
    )
    if "image" in draft.modalities and re.search(small, text) and draft.image_size <= 256:
        draft.image_size *= 2
        return f"images of {draft.image_size} pixels"
    return ""


def _audio(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    match = re.search(r"(?:mel input )?features to (?:be of length )?(\d+)", text)
    if match and "audio" in draft.modalities and int(match[1]) != draft.frames:
        draft.frames = int(match[1])
        return f"{draft.frames} audio frames"
    return ""


def _channels(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    normed = re.search(r"normalized_shape=\[(\d+)\], expected input with shape \[\*, (\d+)\]", text)
    if normed and "audio" in draft.modalities and draft.mel != int(normed[1]):
        draft.mel, draft.audio_layout = int(normed[1]), "frames_mel"
        return f"{draft.mel} audio features per frame"
    match = re.search(r"to have (\d+) channels?, but got (\d+) channels", text)
    if not match:
        product = re.search(
            r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", text
        )
        if product:
            got, want = int(product[1]), int(product[2])
            flat = draft.pixel_layout in ("grid", "patches") or "flattened_patches" in inputs
            if "image" in draft.modalities and flat and got == draft.flat_patch():
                draft.patch_dim = want
                return f"patches of {want} numbers"
            if "audio" in draft.modalities and got == draft.mel and draft.mel != want:
                draft.mel = want
                return f"{want} audio features per frame"
            if (
                "audio" in draft.modalities
                and got == draft.frames
                and draft.audio_layout == "mel_frames"
            ):
                draft.audio_layout = "frames_mel"
                return "audio as frames x features"
        return ""
    want, got = int(match[1]), int(match[2])
    if "audio" in draft.modalities and got in (draft.mel, draft.frames):
        other = {"mel_frames": "frames_mel", "frames_mel": "mel_frames"}.get(draft.audio_layout)
        if other and want == draft.mel:
            draft.audio_layout = other
            return f"audio as {other}"
        draft.mel = want
        return f"{want} audio features per frame"
    if "image" in draft.modalities and got == draft.channels:
        draft.channels = want
        return f"{want} image channels"
    return ""


def _codes(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    """Sound as several streams of codes: one more dimension of the token ids."""
    streams = draft.settings.number("num_codebooks", "num_channels")
    match = re.search(r"size of tensor a \(\d+\) must match the size of tensor b \((\d+)\)", text)
    ids = inputs.get("input_ids")
    if not match or ids is None or ids.dim() != 2 or not streams:
        return ""
    if int(match[1]) in (streams, streams + 1):
        draft.codebooks = int(match[1])
        return f"{draft.codebooks} streams of codes"
    return ""


def _range(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    if "index out of range" not in text and "out of bounds" not in text:
        return ""
    if draft.decoder_vocab > 64 and "decoder_input_ids" in inputs:
        draft.decoder_vocab = 64
        return "decoder tokens below 64"
    if draft.vocab > 64 and "input_ids" in inputs and not draft.features:
        draft.vocab = 64
        return "tokens below 64"
    return ""


def _unpack(draft: Draft, inputs: dict[str, Any], text: str) -> str:
    match = re.search(r"unpack \(expected (\d)(?:, got (\d))?\)", text)
    # "Expected 3D (unbatched) or 4D (batched) input to conv2d": images come in batches.
    match = match or re.search(r"\(unbatched\) or (\d)D \(batched\) input to conv2d", text)
    match = match or re.search(r"(?:[Ee]xpected|must be) (?:an? )?(\d)-?D", text)
    if not match:
        return ""
    want = int(match[1])
    several = re.search(r"of shape \(\w+, (\d+), \w*channels", text)
    if several:  # pictures that belong together (two, of which points are matched)
        draft.images = int(several[1])
    if "image" in draft.modalities and "pixel_values" in inputs:
        for layout in _LAYOUTS.get(want, ()):
            new = layout not in draft.tried and layout != draft.pixel_layout
            if new and inputs["pixel_values"].dim() != want:
                draft.tried |= {layout, draft.pixel_layout}
                draft.pixel_layout = layout
                return f"pixel_values with {want} dimensions"
    if "audio" in draft.modalities:
        layouts = {2: "wave", 3: "frames_mel", 4: "b1_frames_mel"}
        if want in layouts and draft.audio_layout != layouts[want]:
            draft.audio_layout = layouts[want]
            return f"audio with {want} dimensions"
    return ""


_BY_LINE = {_image: _index_mask, _unpack: _mask_dims, _range: _read_as_none, _arguments: _choices}

# Optional arguments that some models cannot do without, likeliest first.
_OPTIONAL = (
    "decoder_input_ids",
    "image_sizes",
    "mm_token_type_ids",
    "token_type_ids",
    "pixel_mask",
    "image_flags",
    "bool_masked_pos",
    "image_attention_mask",
    "image_embeds_position_mask",
)


def _alternative(draft: Draft, text: str) -> bool:
    """Something that was not tried yet, though the objection does not name it."""
    # What a decoder reads goes by other names where it is no text (SpeechT5's decoder_input_values)
    decoder = [name for name in draft.parameters if name.startswith("decoder_input_")]
    for name in dict.fromkeys((*_OPTIONAL, *decoder)):
        if name in draft.parameters and name not in draft.include and name not in draft.exclude:
            draft.include.add(name)
            _note(draft, f"added {name}", text[:120])
            return True
    if "image" in draft.modalities and "pixel_values" in draft.parameters:
        for layout in ("bchw", "bnchw"):
            if layout != draft.pixel_layout and layout not in draft.tried:
                draft.tried |= {layout, draft.pixel_layout}
                draft.pixel_layout = layout
                _note(draft, f"pixel_values as {layout}", text[:120])
                return True
    if "audio" in draft.modalities:
        layouts = ["mel_frames", "frames_mel", "b1_frames_mel", "wave", "b1_wave"]
        if "input_features" not in draft.parameters:
            layouts = layouts[3:] + layouts[:3]
        for layout in layouts:
            if layout != draft.audio_layout and layout not in draft.tried:
                draft.tried |= {layout, draft.audio_layout}
                draft.audio_layout = layout
                _note(draft, f"audio as {layout}", text[:120])
                return True
    return False
