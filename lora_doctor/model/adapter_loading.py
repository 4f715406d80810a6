"""Let the installed PEFT load a saved adapter onto a model on the meta device.

``PeftModel.from_pretrained`` itself is called, so that each release shows what it really does; only
the reading of the file is replaced: tensors without storage take the place of the weights.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_doctor.model.adapter_counts import adapter_parameters
from lora_doctor.model.adapter_sizes import ADAPTER_NAME
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.kept_dtypes import kept_dtypes
from lora_doctor.nn.embeddings import input_embeddings, output_embeddings
from lora_doctor.results.adapter_loading import Landing, OtherShape
from lora_doctor.static.weights import Tensor

#: Parameters that layers share with the model, which alone has them in the file; PEFT leaves the
#: same ones out of its warning.
_SHARED = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")
_SIZE_MISMATCH = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[([\d, ]*)\]\) from "
    r"checkpoint, the shape in current model is torch\.Size\(\[([\d, ]*)\]\)"
)
#: In front of every path of the base model in a state dict of PEFT's.
_BASE = "base_model.model."
#: A learned prompt in an adapter file.
_PROMPT = "prompt_embeddings"
#: safetensors' names of dtypes to torch's; the numbers are not looked at, so others may be float32.
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F64": "float64", "I64": "int64", "I32": "int32"}


def load(model: Any, folder: Path, tensors: Mapping[str, Tensor], sparing: bool = False) -> Landing:
    """Where the tensors go when PEFT loads the adapter of this folder.

    Args:
        model: the base model on the meta device; PEFT changes it.
        folder: has the adapter_config.json, and a weights file that is not read.
        tensors: what stands for its content.
        sparing: with ``low_cpu_mem_usage``.
    """
    seen = _Seen(sparing=sparing)
    of_base = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    try:
        _from_pretrained(model, folder, tensors, seen)
    except Exception as error:  # noqa: BLE001 - what PEFT refuses is the evidence
        shapes = _other_shapes(str(error))
        return Landing(
            tensors=len(tensors),
            error=None if shapes else library_error(error),
            other_shapes=shapes,
        )
    names = _names_of_adapter(seen.wrapped)
    valued = _with_values(seen)
    missing = [name for name in seen.missing
               if name in names and name not in valued and not _is_shared(name)]  # fmt: skip
    unexpected = [
        name
        for name in seen.unexpected
        if not _is_prompt(name, seen.wrapped)
        and not _is_from_seed(name)
        and not _is_saved_twice(name, tensors)
    ]
    narrow = _prompt_of_other_width(seen.wrapped, tensors)
    return Landing(
        tensors=len(tensors),
        other_shapes=narrow,
        nowhere=tuple(seen.in_file.get(name, name) for name in unexpected),
        looked_for=tuple(unexpected),
        without_value=tuple(missing),
        parameters=len(names),
        over_base=tuple(_over_base(seen, of_base)),
        kept_dtypes=tuple(kept_dtypes(seen.wrapped, ADAPTER_NAME)) if sparing else (),
    )


@dataclass
class _Seen:
    """What went through PEFT's hands: the model with the adapter, the result of its loading, and
    for each name that PEFT looked for the one in the file."""

    sparing: bool = False
    wrapped: Any = None
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    in_file: dict[str, str] = field(default_factory=dict)


def _from_pretrained(model: Any, folder: Path, tensors: Mapping[str, Tensor], seen: _Seen) -> None:
    import peft
    import torch

    content = {name: without_storage(item) for name, item in tensors.items()}
    with (
        contents_are(content),
        _recorded(content, seen),
        torch.device("meta"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        options = {"low_cpu_mem_usage": True} if seen.sparing else {}
        seen.wrapped = peft.PeftModel.from_pretrained(
            model, str(folder), adapter_name=ADAPTER_NAME, torch_device="cpu", **options
        )


def without_storage(tensor: Tensor) -> Any:
    """A tensor of this shape and dtype on the meta device."""
    import torch

    dtype = getattr(torch, _DTYPES.get(tensor.dtype, "float32"))
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


@contextlib.contextmanager
def contents_are(content: Mapping[str, Any]) -> Iterator[None]:
    """PEFT reads this instead of a safetensors file, whichever it opens."""
    place = importlib.import_module("peft.utils.save_and_load")
    with _replaced(place, "safe_load_file", lambda *arguments, **options: dict(content)):
        yield


@contextlib.contextmanager
def _recorded(content: Mapping[str, Any], seen: _Seen) -> Iterator[None]:
    """Note what PEFT sets, under which names, and what is left over."""
    place = importlib.import_module("peft.peft_model")
    original = place.set_peft_model_state_dict
    origin = {id(value): name for name, value in content.items()}

    def watched(model: Any, *arguments: Any, **options: Any) -> Any:
        load_state_dict = model.load_state_dict

        def load(state: Mapping[str, Any], *more: Any, **others: Any) -> Any:
            seen.in_file.update(
                {name: origin.get(id(value), name) for name, value in state.items()}
            )
            result = load_state_dict(state, *more, **others)
            # Copied: `load_adapter` empties these lists.
            seen.missing += result.missing_keys
            seen.unexpected += result.unexpected_keys
            return result

        model.load_state_dict = load
        try:
            return original(model, *arguments, **options)
        finally:
            del model.load_state_dict

    with _replaced(place, "set_peft_model_state_dict", watched):
        yield


@contextlib.contextmanager
def _replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def _names_of_adapter(wrapped: Any) -> set[str]:
    """Names of the adapter's parameters, and of those of modules that are saved with it."""
    ours, saved = adapter_parameters(wrapped, (ADAPTER_NAME,))
    return {
        name
        for name, value in wrapped.named_parameters(remove_duplicate=False)
        if id(value) in ours or id(value) in saved
    }


def _with_values(seen: _Seen) -> set[str]:
    """Other names of parameters that got their values by one that is in the file: the tokens of
    tied embeddings are trained once, and saved once."""
    by_name = dict(seen.wrapped.named_parameters(remove_duplicate=False))
    filled = {id(value) for name, value in by_name.items() if name not in seen.missing}
    return {name for name, value in by_name.items() if id(value) in filled}


def _is_prompt(name: str, wrapped: Any) -> bool:
    """Whether PEFT has given this tensor to the prompt encoder, which is not a part of the state
    dict that it sets and raises by itself."""
    learns_prompt = wrapped.peft_config[ADAPTER_NAME].is_prompt_learning
    return bool(learns_prompt) and name.startswith(("prompt_embeddings", "prefix_task_"))


def _prompt_of_other_width(wrapped: Any, tensors: Mapping[str, Tensor]) -> tuple[OtherShape, ...]:
    """A learned prompt that goes in front of the embeddings and is not as wide as they are. PEFT
    makes the prompt as wide as the adapter's config says, and the first forward fails."""
    config = wrapped.peft_config[ADAPTER_NAME]
    prompt = tensors.get(_PROMPT)
    if prompt is None or not config.is_prompt_learning or len(prompt.shape) != 2:
        return ()
    if "PREFIX" in str(config.peft_type):  # keys and values of all layers, not embeddings
        return ()
    width = getattr(input_embeddings(wrapped.get_base_model()), "embedding_dim", None)
    if not isinstance(width, int) or width == prompt.shape[1]:
        return ()
    return (OtherShape(_PROMPT, prompt.shape, (prompt.shape[0], width)),)


def _over_base(seen: _Seen, of_base: set[str]) -> Iterator[str]:
    """Names in the file of tensors that PEFT set in place of the base model's own weights. Not
    those that it saves on purpose: embeddings and the head after the vocabulary was resized, and
    biases where the config trains them."""
    base = seen.wrapped.get_base_model()
    embeddings = {
        id(value)
        for module in (input_embeddings(base), output_embeddings(base))
        if module is not None
        for value in module.parameters()
    }
    known = {
        name
        for name, value in base.named_parameters(remove_duplicate=False)
        if id(value) in embeddings
    }
    biases = getattr(seen.wrapped.peft_config[ADAPTER_NAME], "bias", "none") != "none"
    for name, in_file in seen.in_file.items():
        own = name.removeprefix(_BASE)
        plain = own.replace(".base_layer.", ".")
        if own == name or plain not in of_base or own in known:
            continue
        if not (biases and plain.endswith(".bias")):
            yield in_file


def _is_from_seed(name: str) -> bool:
    """Whether this is what all layers share, such as ``base_model.vera_A``: some releases of PEFT
    save it and make it anew from its seed."""
    before, _, own = name.partition(".")
    return before == "base_model" and bool(own) and "." not in own


def _is_saved_twice(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether this is a module of ``modules_to_save`` under a second name: where PEFT saves the
    embeddings because they were resized, it writes those that are such a module once more."""
    before, found, own = name.partition(".modules_to_save.")
    return bool(found) and f"{before}.{own}" in tensors


def _is_shared(name: str) -> bool:
    return any(part in name for part in _SHARED)


def _other_shapes(message: str) -> tuple[OtherShape, ...]:
    """The shapes that torch's own message about a state dict names."""

    def sizes(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(",") if part.strip())

    return tuple(
        OtherShape(name, sizes(in_file), sizes(in_model))
        for name, in_file, in_model in _SIZE_MISMATCH.findall(message)
    )
