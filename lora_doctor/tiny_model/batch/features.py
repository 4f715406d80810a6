"""How many tokens an image or a sound takes, and how wide: by asking the towers of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.results.note import Note
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.makers import MAKERS
from lora_doctor.tiny_model.batch.modality_errors import pictures, sound
from lora_doctor.tiny_model.batch.names import common_names, renamed
from lora_doctor.tiny_model.batch.settings import Settings
from lora_doctor.tiny_model.batch.unknown import can_guess, guess


def count_features(draft: Draft, again: bool = False) -> None:
    """Set how many placeholders an image or a sound needs, by asking the tower of the model.

    Towers that cannot be asked leave a guess from the config, which the forward then corrects.
    `again`: in another layout; what is known stays where the tower does not answer.
    """
    for kind, names in _TOWER_INPUTS.items():
        if kind not in draft.modalities or draft.marker(kind) is None:
            continue
        if "input_ids" not in draft.parameters or (kind in draft.features and not again):
            continue
        rows = _rows(_tower(draft, kind, names)) // draft.batch_size
        if rows or not again:
            draft.features[kind] = rows or _guess(draft, kind)


def feature_width(model: Any, kind: str) -> int:
    """Features of one token that the tower of `model` gives out; 0 if it cannot tell."""
    import inspect

    settings = Settings(getattr(model, "config", None))
    parameters = dict(inspect.signature(model.forward).parameters)
    draft = Draft(model, parameters, settings, 2, 16, 0, {"text", kind})
    draft.prepare()
    return _width(_tower(draft, kind, _TOWER_INPUTS[kind]))


_ANSWERS = 4  # to objections of a tower that is asked
_TOWER_INPUTS = {
    "image": (
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
    "audio": (
        "input_features",
        "feature_attention_mask",
        "input_features_mask",
        "input_values",
        "attention_mask",
    ),
    "video": ("pixel_values_videos", "video_grid_thw"),
}


def _tower(draft: Draft, kind: str, names: tuple[str, ...]) -> Any:
    import inspect

    import torch

    told = "video" if kind == "image" and draft.settings.placeholder(kind) is None else kind
    methods = [
        getattr(owner, f"get_{told}_features")
        for owner in (draft.model, getattr(draft.model, "model", None))
        if hasattr(owner, f"get_{told}_features")
    ]
    if not methods:
        return None
    # the outer one may only hand on what it gets: `(*args, **kwargs)`
    signatures = [
        renamed(found, common_names(found))
        for found in (inspect.signature(method).parameters for method in methods)
    ]
    telling = [i for i, takes in enumerate(signatures) if not takes.keys().isdisjoint(names)]
    chosen = telling[0] if telling else 0
    method, takes = methods[chosen], signatures[chosen]
    for _ in range(_ANSWERS):
        arguments = _arguments(draft, names, takes)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return method(**{k: v for k, v in draft.own(arguments).items() if v is not None})
        except Exception as error:  # noqa: BLE001 - what is not understood is heard in forward too
            text = " ".join(str(error).split())
            said = f"{type(error).__name__}: {text[:120]}"
        answered = pictures(draft, arguments, text) or sound(draft, arguments, text)
        told = f"get_{kind}_features: {answered or said}"
        draft.notes.append(Note("step", told) if answered else Note("objection", told, said))
        if not answered:
            break
    return None


def _arguments(draft: Draft, names: tuple[str, ...], takes: Mapping[str, Any]) -> dict[str, Any]:
    """What a tower takes of the arguments of forward, and what it cannot do without."""
    arguments: dict[str, Any] = {}
    for name in names:
        if name in takes and name in draft.parameters and name in MAKERS:
            arguments[name] = MAKERS[name](draft, arguments)
    for name, parameter in takes.items():
        if parameter.default is parameter.empty and name not in arguments:
            config = getattr(draft.model, "config", None)
            if hasattr(config, name):
                arguments[name] = getattr(config, name)
            elif name in MAKERS:
                arguments[name] = MAKERS[name](draft, arguments)
            elif can_guess(draft, name):
                arguments[name] = guess(draft, name, arguments)
    return arguments


def _width(found: Any) -> int:
    """The last dimension of the first tensor that a tower returned."""
    import torch

    for name in ("pooler_output", "last_hidden_state"):
        if getattr(found, name, None) is not None:
            return _width(getattr(found, name))
    if isinstance(found, (list, tuple)) and found:
        return _width(found[0])
    return int(found.shape[-1]) if isinstance(found, torch.Tensor) and found.dim() else 0


def _rows(found: Any) -> int:
    """Feature vectors in what a tower returned."""
    import torch

    for name in ("pooler_output", "last_hidden_state"):
        if getattr(found, name, None) is not None:
            return _rows(getattr(found, name))
    if isinstance(found, torch.Tensor):
        return found.numel() // found.shape[-1] if found.dim() else 0
    if isinstance(found, (list, tuple)):
        if (
            len(found) == 2
            and isinstance(found[1], torch.Tensor)
            and not found[1].is_floating_point()
        ):
            return _rows(found[0])
        if (
            len(found) == 2
            and isinstance(found[0], torch.Tensor)
            and isinstance(found[1], (list, tuple))
        ):
            return _rows(found[0])  # the features, then those for deeper layers
        return sum(_rows(item) for item in found)
    return 0


def _guess(draft: Draft, kind: str) -> int:
    s = draft.settings
    if kind == "audio":
        return s.number(
            "audio_seq_length", "audio_soft_tokens_per_image", default=draft.frames // 4
        )
    count = s.number(
        "mm_tokens_per_image",
        "image_seq_length",
        "image_seq_len",
        "num_image_tokens",
        "num_query_tokens",
        "vision_soft_tokens_per_image",
    )
    pictures = draft.images_per_row() if draft.pixel_layout == "bnchw" else 1
    return (count or max(1, draft.image_size // draft.patch) ** 2) * pictures
