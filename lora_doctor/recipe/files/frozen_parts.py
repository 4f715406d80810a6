"""Parts of a multimodal model that a framework leaves without adapters unless it is told to train
them: they are known to it by parts of the paths of their modules."""

from __future__ import annotations

from lora_doctor.recipe.keys import config_fields

_ENCODERS = (
    r"vision_tower|vision_model|audio_tower|vpm\.|apm\."
    r"|visual\.(?:pos_embed|patch_embed|blocks|deepstack_merger_list)"
)
_PROJECTORS = r"multi_modal_projector|visual\.merger|embed_vision|embed_audio|resampler"
_LANGUAGE = r"language_model|lm_head"


def left_out(*, encoders: bool, projectors: bool, language: bool) -> str | None:
    """The value of ``exclude_modules`` that leaves these parts without adapters: a regular
    expression. ``None``: none is left out, or the installed PEFT has no such key."""
    chosen = ((_ENCODERS, encoders), (_PROJECTORS, projectors), (_LANGUAGE, language))
    parts = [part for part, is_frozen in chosen if is_frozen]
    if not parts or "exclude_modules" not in (config_fields("LORA") or ()):
        return None
    return rf".*(?:{'|'.join(parts)}).*"
