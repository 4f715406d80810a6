"""Forward arguments about audio: spectrograms or waveforms, and the masks of their frames.

Each maker gets the draft and the arguments made so far.
"""

from __future__ import annotations

from typing import Any

from lora_doctor.tiny_model.batch.draft import Draft


def audio_values(draft: Draft, inputs: dict[str, Any]) -> Any:
    """Noise in the layout of the draft."""
    import torch

    b, audio = draft.batch_size, draft.audio
    shapes = {
        "mel_frames": (b, audio.mel_bins, audio.frames),
        "frames_mel": (b, audio.frames, audio.mel_bins),
        "b1_frames_mel": (b, 1, audio.frames, audio.mel_bins),
        "wave": (b, audio.samples),
        "b1_wave": (b, 1, audio.samples),
    }
    return torch.randn(shapes[audio.layout], generator=draft.generator()) * 0.1


def frames_mask(draft: Draft, inputs: dict[str, Any]) -> Any:
    import torch

    dtype = torch.bool if draft.audio.bool_masks else torch.long
    return torch.ones((draft.batch_size, draft.audio.frames), dtype=dtype)
