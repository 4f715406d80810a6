"""Correcting a draft by what the forward raised for it, and by guessing where that says nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_doctor.results.note import Note
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.errors import argument_errors as argument
from lora_doctor.tiny_model.batch.errors import choice_errors as choices
from lora_doctor.tiny_model.batch.errors import modality_errors as modality
from lora_doctor.tiny_model.batch.errors import shape_errors as shape
from lora_doctor.tiny_model.batch.errors.raised import Raised
from lora_doctor.tiny_model.faults_of_code import is_fault_of_code
from lora_doctor.tiny_model.model_error import ModelError

#: Changes the draft as an error calls for and says how; an empty text where it does not.
Reader = Callable[[Draft, dict[str, Any], Raised], str]

#: In this order. Those that read the line of code that raised come before those for the same text.
_READERS: tuple[Reader, ...] = (
    modality.image_patches,
    modality.audio_shape,
    modality.audio_mask,
    choices.choice,
    argument.several_choices,
    argument.arguments,
    modality.placeholders,
    shape.index_mask,
    modality.image_size,
    modality.audio_frames,
    modality.channels,
    shape.codebooks,
    shape.lengths,
    argument.none_where_it_is_read,
    shape.id_range,
    shape.mask_dimensions,
    shape.dimensions,
)

#: Optional arguments that some models cannot do without, likeliest first.
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


def correct(draft: Draft, inputs: dict[str, Any], error: BaseException) -> bool:
    """Change `draft` by what `error` says; False where nothing is left to try."""
    raised = Raised.by(error, draft.own_names)
    if modality.has_equal_counts(raised):
        # As many as wanted, but of another width: the config is wrong, not the batch
        change = modality.audio_mask(draft, inputs, raised)
        draft.notes += [Note("step", change)] if change else []
        draft.first_error = draft.first_error or error
        return bool(change)
    for reader in _READERS:
        change = reader(draft, inputs, raised)
        if change:
            _note(draft, change, raised, raised.summary)
            draft.first_error = None
            return True
    draft.first_error = draft.first_error or error
    if is_fault_of_code(error):
        return False
    change = argument.not_made_by_forward(draft, inputs, raised)
    if change:
        _note(draft, change, raised, raised.summary)
        return True
    change = _guess(draft)
    if change:
        _note(draft, change, raised, raised.start)
    return bool(change)


def _note(draft: Draft, change: str, raised: Raised, error: str) -> None:
    """Note what was changed, and the error that the model had raised."""
    told = f"{change} ({error})"
    draft.notes.append(Note("objection", told, error))
    draft.objections.append(ModelError.of(raised.exception, told))


def _guess(draft: Draft) -> str:
    """A change that no error called for and that was not tried yet: an optional argument, another
    layout; empty where none is left."""
    # A decoder's input has other names where it is no text (SpeechT5's decoder_input_values)
    decoder = [name for name in draft.parameters if name.startswith("decoder_input_")]
    for name in dict.fromkeys((*_OPTIONAL, *decoder)):
        if name in draft.parameters and not draft.is_decided(name, {}):
            draft.include.add(name)
            return f"added {name}"
    if "image" in draft.modalities and "pixel_values" in draft.parameters:
        for layout in ("bchw", "bnchw"):
            if draft.image.is_new(layout):
                draft.image.use(layout)
                return f"pixel_values as {layout}"
    if "audio" in draft.modalities:
        for layout in _audio_layouts(draft):
            if draft.audio.is_new(layout):
                draft.audio.use(layout)
                return f"audio as {layout}"
    return ""


def _audio_layouts(draft: Draft) -> list[str]:
    """All of them, likeliest first."""
    spectrograms, waveforms = ["mel_frames", "frames_mel", "b1_frames_mel"], ["wave", "b1_wave"]
    if "input_features" in draft.parameters:
        return spectrograms + waveforms
    return waveforms + spectrograms
