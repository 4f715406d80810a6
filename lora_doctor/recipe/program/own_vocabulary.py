"""A vocabulary that a program gives a model beside its checkpoint's."""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Known


@dataclass(frozen=True)
class OwnVocabulary:
    """``size``: of the vocabulary; ``None`` where the program computes it (``len(tokenizer)``)."""

    size: int | None
    place: Place


def own_vocabulary(setup: Setup) -> OwnVocabulary | None:
    """What ``from_pretrained(..., vocab_size=...)`` of the model says; ``None`` where it is not
    given."""
    loader = setup.roles.loader
    given = loader.value("vocab_size") if loader is not None else None
    if loader is None or given is None:
        return None
    if not isinstance(given, Known):
        return OwnVocabulary(None, loader.place)
    return OwnVocabulary(given.value, loader.place) if isinstance(given.value, int) else None
