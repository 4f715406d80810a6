"""The token embeddings and the output head of a model, as the model itself names them."""

from __future__ import annotations

from typing import Any

#: What classes of transformers and of model repositories raise where there are none, or several.
_NONE = (AttributeError, NotImplementedError, TypeError, KeyError)


def input_embeddings(model: Any) -> Any:
    """The token embeddings, or ``None`` where the model has none or several (CLIP, from 5.0)."""
    try:
        return model.get_input_embeddings()
    except _NONE:
        return None


def output_embeddings(model: Any) -> Any:
    """The output head, or ``None`` where the model names none."""
    try:
        return model.get_output_embeddings()
    except _NONE:
        return None
