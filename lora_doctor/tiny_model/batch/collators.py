"""Which forward arguments a collator of transformers sends for a model, by the classes that the
installed transformers has for its config: the tokenizer's ``model_input_names``, and what the code
of its processor names.

A data collator pads what the tokenizer or the processor returned, and adds labels.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from lora_doctor.results.verification import AddedInput

#: Of what processors send: what no tokenizer and no image processor of such a model makes.
_ADDED_BY_PROCESSORS = ("token_type_ids", "labels")


def added_inputs(model: Any, names: Sequence[str]) -> tuple[AddedInput, ...]:
    """Of arguments without which forward raised, who sends them. Nothing is said of a model for
    whose config transformers has no tokenizer: its inputs are its own."""
    tokenizer = _tokenizer_class(model)
    if tokenizer is None:
        return ()
    processor = _processor_class(model)
    return tuple(
        AddedInput(
            name,
            tokenizer=tokenizer.__name__,
            by_tokenizer=name in (getattr(tokenizer, "model_input_names", None) or ())
            or _is_collators_own(name),
            processor=processor.__name__ if processor is not None and _names(processor, name)
            else "",
        )
        for name in names
    )  # fmt: skip


def sent_by_processor(model: Any) -> frozenset[str]:
    """The arguments that the code of the processor's `model_input_names` names: what it adds to
    those of its tokenizer and its image processor. One that makes labels may not name them there
    (PaliGemma's before 5): its `__call__` does. Empty without a processor."""
    processor = _processor_class(model)
    getter = getattr(getattr(processor, "model_input_names", None), "fget", None)
    named = _added_in(getter)
    if named:
        return named
    made = _added_in(processor and processor.__call__)
    return made if "labels" in made else frozenset()


def _added_in(code: Any) -> frozenset[str]:
    return frozenset(name for name in _ADDED_BY_PROCESSORS if _names(code, f'"{name}"'))


def _tokenizer_class(model: Any) -> Any:
    """The class of the tokenizer, the fast one where there are two."""
    try:
        from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

        found = TOKENIZER_MAPPING[type(model.config)]
    except (AttributeError, ImportError, KeyError, ValueError):
        return None
    classes = found if isinstance(found, (tuple, list)) else (found,)
    return next((one for one in reversed(classes) if one is not None), None)


def _processor_class(model: Any) -> Any:
    try:
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

        return PROCESSOR_MAPPING[type(model.config)]
    except (AttributeError, ImportError, KeyError, ValueError):
        return None


def _is_collators_own(name: str) -> bool:
    """Whether the collator for encoders with a decoder makes it from the labels."""
    from transformers import DataCollatorForSeq2Seq

    return _names(DataCollatorForSeq2Seq, f'["{name}"]')


def _names(cls: Any, name: str) -> bool:
    """Whether the code of a class mentions an argument."""
    try:
        return name in inspect.getsource(cls)
    except (OSError, TypeError):
        return False
