"""Generation: where it stops by the published files, and rows that the model itself has written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting


def prepare(acting: Acting) -> None:
    """Once transformers can generate."""
    acting.after("transformers.generation.utils", lambda module: _generating(acting, module))


def _generating(acting: Acting, module: ModuleType) -> None:
    """GRPO and its like train on what the model has just written: no data set is behind the rows,
    and an answer without an end is the model's, not the user's."""

    def generate(original: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        if not acting.evaluations and not acting.in_contract:
            acting.has_generated = True
            acting.writes_its_rows |= bool(acting.in_trainer)
        return original(model, *arguments, **named)

    acting.replaced.around(module.GenerationMixin, "generate", generate)


def as_published(model: Any, name: str, looked: Mapping[str, Any]) -> None:
    """Give a small model the generation config that the real one is published with, if any."""
    own = getattr(model, "generation_config", None)
    if own is not None:
        with contextlib.suppress(OSError):  # there is none: it is made of the model's config
            model.generation_config = type(own).from_pretrained(name, **looked)
