"""Towers that the config leaves out: no size of what is there brings them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lora_doctor.tiny_model.model_error import ModelError

_NOT_CALLABLE = "'NoneType' object is not callable"
_CALLED = re.compile(r"\bself\.([a-z]\w*)\(")
_NAMED = re.compile(r"\bwithout an? (\w+_config)\b")


def all_absent(model: Any, config: Any, forward_errors: Sequence[ModelError]) -> bool:
    """Whether all errors are about a tower whose part of the config is ``None``: Gemma 4 has a
    ``vision_tower`` only beside a ``vision_config``, and says the same itself of audio."""
    return bool(forward_errors) and all(_absent(model, config, error) for error in forward_errors)


def _absent(model: Any, config: Any, error: ModelError) -> bool:
    named = _NAMED.search(error.message)
    if named is not None:
        return getattr(config, named[1], config) is None
    called = _CALLED.search(error.line) if _NOT_CALLABLE in error.message else None
    if called is None:
        return False
    found = [getattr(one, called[1]) for one in model.modules() if hasattr(one, called[1])]
    kind = called[1].partition("_")[0]
    return found == [None] * len(found) and getattr(config, f"{kind}_config", config) is None
