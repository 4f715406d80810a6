"""Only the adapters that a model brings itself are trained.

Some models (Phi-4-multimodal's kind) put adapters into themselves while they are being built. What
of such a model takes a gradient depends on its code and on the release: its head is left as it was,
``from_pretrained`` of transformers 5 makes every weight trainable again, and PEFT's
``prepare_model_for_kbit_training`` freezes the adapters with all the rest.

With the patch the model comes out of both with its active adapters trainable and everything else
frozen. A script that makes more of it trainable afterwards is free to do so. Models without
adapters of their own, and those that transformers has loaded an adapter into, are left alone.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any

NAME = "own_adapters_only"
SUMMARY = "Trains the adapters that a model brings itself, and nothing else of it"

_log = logging.getLogger("lora_doctor")

_PREPARE = "prepare_model_for_kbit_training"
_HOLDERS = ("peft.utils.other", "peft.utils", "peft")


def why_not() -> str | None:
    """Why it does not fit the installed libraries, or ``None``."""
    try:
        import peft
        from transformers import PreTrainedModel
    except ImportError as error:
        return f"transformers or PEFT cannot be imported: {error}"
    if not isinstance(vars(PreTrainedModel).get("from_pretrained"), classmethod):
        return "the installed transformers' PreTrainedModel has no class method 'from_pretrained'"
    if not callable(getattr(peft, _PREPARE, None)):
        return f"PEFT {peft.__version__} has no {_PREPARE!r}"
    return None


def install() -> Callable[[], None]:
    """Patch ``PreTrainedModel.from_pretrained`` and ``prepare_model_for_kbit_training``."""
    import peft
    from transformers import PreTrainedModel

    loading: Any = vars(PreTrainedModel)["from_pretrained"]
    preparing: Any = getattr(peft, _PREPARE)

    @functools.wraps(loading.__func__)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = loading.__func__(cls, *args, **kwargs)
        # With output_loading_info the model is the first of two.
        _train_own(found[0] if isinstance(found, tuple) else found)
        return found

    @functools.wraps(preparing)
    def prepare(*args: Any, **kwargs: Any) -> Any:
        model = preparing(*args, **kwargs)
        _train_own(model)
        return model

    holders = [
        module
        for name in _HOLDERS
        if getattr(module := importlib.import_module(name), _PREPARE, None) is preparing
    ]
    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    for holder in holders:
        setattr(holder, _PREPARE, prepare)

    def undo() -> None:
        PreTrainedModel.from_pretrained = loading
        for holder in holders:
            setattr(holder, _PREPARE, preparing)

    return undo


def _train_own(model: Any) -> None:
    from lora_doctor.model.built_in_adapters import brings_adapters, train_own

    if getattr(model, "_hf_peft_config_loaded", False) or not brings_adapters(model):
        return
    before = sum(value.requires_grad for value in model.parameters())
    after = sum(value.requires_grad for value in train_own(model, integers=False).parameters())
    _say_once(type(model).__name__, before, after)


@functools.cache
def _say_once(model_class: str, before: int, after: int) -> None:
    _log.warning(
        "patch %s: %s has %d trainable tensors, all in its own adapters (%d before)",
        NAME, model_class, after, before,
    )  # fmt: skip
