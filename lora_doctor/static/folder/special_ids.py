"""Ids of special tokens in a config, against the vocabulary of the same section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_doctor.static.folder.parts import entries, model_types_of
from lora_doctor.static.folder.sources import changes_its_vocabulary, pads_in_its_embedding


@dataclass(frozen=True)
class PaddingId:
    """A `pad_token_id` for which an embedding has no row: both entries, by their dotted paths."""

    key: str
    id: int
    vocabulary_key: str
    vocab_size: int
    model_type: str


def padding_ids_beyond(config: Mapping[str, Any]) -> Iterator[PaddingId]:
    """Every `pad_token_id` of `vocab_size` or more that the installed class hands to an embedding.

    Only the section's own `vocab_size` counts, and only where the class does not compute with it.
    """
    every = list(entries(config))
    sizes = {entry.section: entry for entry in every if entry.key == "vocab_size"}
    for entry in every:
        size = sizes.get(entry.section)
        if entry.key != "pad_token_id" or type(entry.value) is not int or size is None:
            continue
        types = model_types_of(config, entry.section)[:1]
        if type(size.value) is not int or entry.value < size.value:
            continue
        if pads_in_its_embedding(types) and not changes_its_vocabulary(types):
            yield PaddingId(entry.path, entry.value, size.path, size.value, types[0])
