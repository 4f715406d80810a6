"""How many tokens an image, a video or audio takes, and how wide they are: by running the towers of
the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lora_doctor.results.note import Note
from lora_doctor.tiny_model.batch.draft import Draft
from lora_doctor.tiny_model.batch.errors.modality_errors import audio_shape, image_patches
from lora_doctor.tiny_model.batch.errors.raised import Raised
from lora_doctor.tiny_model.batch.first_guess import first_draft
from lora_doctor.tiny_model.batch.image_geometry import images_per_sample, patch_size
from lora_doctor.tiny_model.batch.names import common_names, renamed
from lora_doctor.tiny_model.batch.values.makers import MAKERS
from lora_doctor.tiny_model.batch.values.token_ids import placeholder_id
from lora_doctor.tiny_model.batch.values.unknown import can_guess, guess
from lora_doctor.tiny_model.modalities import BY_NAME, MODALITIES, Modality
from lora_doctor.tiny_model.model_error import ModelError

_ATTEMPTS = 4  # to call a tower, each corrected by the error of the one before


def count_placeholders(draft: Draft, again: bool = False) -> None:
    """Set how many placeholders each modality needs, by running its tower.

    Towers that cannot be run leave a guess from the config, which the forward then corrects.
    `again`: in another layout; what is known stays where the tower does not run.
    """
    for modality in MODALITIES:
        name = modality.name
        if not modality.tower_arguments or name not in draft.modalities:
            continue
        if placeholder_id(draft, name) is None or "input_ids" not in draft.parameters:
            continue
        if name in draft.placeholders and not again:
            continue
        rows = _vectors(_tower_output(draft, modality)) // draft.batch_size
        if rows or not again:
            draft.placeholders[name] = rows or _by_config(draft, name)


def feature_width(model: Any, modality: str) -> int:
    """Width of the features of a tower of `model`; 0 where it cannot be run."""
    parameters = dict(inspect.signature(model.forward).parameters)
    draft = first_draft(model, parameters, {"text", modality})
    return _width(_tower_output(draft, BY_NAME[modality]))


def _tower_output(draft: Draft, modality: Modality) -> Any:
    """What `get_image_features` and its like return; None where there is none or it raises."""
    import torch

    found = _tower_method(draft, modality)
    if found is None:
        return None
    method, parameters = found
    for _ in range(_ATTEMPTS):
        arguments = _arguments(draft, modality.tower_arguments, parameters)
        own = {k: v for k, v in draft.with_own_names(arguments).items() if v is not None}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return method(**own)
        except Exception as error:  # noqa: BLE001 - forward raises again what is not corrected here
            raised = Raised.by(error)
        change = image_patches(draft, arguments, raised) or audio_shape(draft, arguments, raised)
        text = f"get_{modality.name}_features: {change or raised.summary}"
        if not change:
            draft.notes.append(Note("objection", text, raised.summary))
            draft.objections.append(ModelError.of(raised.exception, text))
            break
        draft.notes.append(Note("step", text))
    return None


def _tower_method(draft: Draft, modality: Modality) -> tuple[Any, dict[str, Any]] | None:
    """The method that runs the tower of a modality, and its parameters by their common names."""
    name = modality.name
    if name == "image" and draft.entries.placeholder(name) is None:
        name = "video"
    methods = [
        getattr(owner, f"get_{name}_features")
        for owner in (draft.model, getattr(draft.model, "model", None))
        if hasattr(owner, f"get_{name}_features")
    ]
    found = [(method, _parameters(method)) for method in methods]
    # the outer one may only pass on what it gets: `(*args, **kwargs)`
    naming = [pair for pair in found if not pair[1].keys().isdisjoint(modality.tower_arguments)]
    return next(iter([*naming, *found]), None)


def _parameters(method: Any) -> dict[str, Any]:
    parameters = inspect.signature(method).parameters
    return renamed(parameters, common_names(parameters))


def _arguments(draft: Draft, names: tuple[str, ...], takes: Mapping[str, Any]) -> dict[str, Any]:
    """Which of the arguments of forward a tower takes, and what it requires beside them."""
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


def _main_output(output: Any) -> Any:
    """The features themselves, where a tower returns an output object."""
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return _main_output(getattr(output, name))
    return output


def _width(output: Any) -> int:
    """The last dimension of the first tensor that a tower returned."""
    import torch

    output = _main_output(output)
    if isinstance(output, (list, tuple)) and output:
        return _width(output[0])
    return int(output.shape[-1]) if isinstance(output, torch.Tensor) and output.dim() else 0


def _vectors(output: Any) -> int:
    """Number of feature vectors in what a tower returned."""
    import torch

    output = _main_output(output)
    if isinstance(output, torch.Tensor):
        return output.numel() // output.shape[-1] if output.dim() else 0
    if isinstance(output, (list, tuple)):
        if len(output) == 2 and _is_beside_features(*output):
            return _vectors(output[0])
        return sum(_vectors(item) for item in output)
    return 0


def _is_beside_features(first: Any, second: Any) -> bool:
    """Whether the second of two outputs counts or repeats the first: lengths, or the features for
    deeper layers."""
    import torch

    if isinstance(second, torch.Tensor) and not second.is_floating_point():
        return True
    return isinstance(first, torch.Tensor) and isinstance(second, (list, tuple))


def _by_config(draft: Draft, modality: str) -> int:
    """Number of placeholders by the config's entries, else by the size of the input."""
    if modality == "audio":
        return draft.entries.number(
            "audio_seq_length", "audio_soft_tokens_per_image", default=draft.audio.frames // 4
        )
    count = draft.entries.number(
        "mm_tokens_per_image",
        "image_seq_length",
        "image_seq_len",
        "num_image_tokens",
        "num_query_tokens",
        "vision_soft_tokens_per_image",
    )
    images = images_per_sample(draft) if draft.image.layout == "bnchw" else 1
    patches = max(1, draft.image.size // patch_size(draft.entries)) ** 2
    return (count or patches) * images
