"""How many tokens a model has: `vocab_size` of its config, and the rows of its embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_doctor.static.folder.parts import Entry, entries, model_types_of, part_of
from lora_doctor.static.folder.sources import (
    changes_its_vocabulary,
    embeds_its_vocabulary,
    modeling_sources,
)
from lora_doctor.static.weights import Tensor, Weights

_INPUT = re.compile(
    r"(?:[a-z_]+\.)*(?:embed_tokens|wte|word_embeddings?|tok_embeddings|shared|embed_in)\.weight"
)
_OUTPUT = re.compile(r"(?:[a-z_]+\.)*(?:lm_head|embed_out)\.weight")
_SIZE = re.compile(r"(?:\w+_)?(?:vocab_size\w*|n_vocab|num_embeddings|n_words|vocabulary_size)")
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True)
class TokenRows:
    """The rows that token ids may name.

    ``rows`` is their number, ``where`` what says so; ``section`` is the section of the config whose
    ``vocab_size`` it is.
    """

    rows: int
    where: str
    section: str


@dataclass(frozen=True)
class VocabularyMismatch:
    """A tensor with another number of rows than the config's vocabulary."""

    tensor: str
    file: str
    shape: tuple[int, ...]
    key: str
    vocab_size: int


def vocabulary_mismatches(
    config: Mapping[str, Any], weights: Weights
) -> tuple[VocabularyMismatch, ...]:
    """Token embeddings and heads whose rows are not the vocabulary that the config announces.

    Nothing where the config has several vocabularies, or its class computes with the number, or is
    code that the installed transformers does not have.
    """
    size = _vocabulary(config)
    if size is None:
        return ()
    model_types = model_types_of(config, size.section)
    if changes_its_vocabulary(model_types):
        return ()
    if config.get("auto_map") and not modeling_sources(model_types):
        return ()  # code of the repository may compute as it likes
    known = _sizes(config)
    return tuple(
        VocabularyMismatch(name, tensor.file, tensor.shape, size.path, size.value)
        for name, tensor in _tables(weights, _INPUT, _OUTPUT)
        if tensor.shape[0] not in known
    )


def token_rows(config: Mapping[str, Any], weights: Weights | None) -> TokenRows | None:
    """The rows of the input embeddings; ``None`` where there are none, or there is a doubt."""
    tables = _tables(weights, _INPUT) if weights is not None else []
    size = _vocabulary(config)
    section = size.section if size is not None else ""
    if weights is not None and not weights.unread and tables:
        rows = {tensor.shape[0] for _, tensor in tables}
        if len(rows) != 1 or "additional_vocab_size" in {e.key for e in entries(config)}:
            return None
        name, tensor = tables[0]
        return TokenRows(tensor.shape[0], f"{name} in {tensor.file}", section)
    if size is None:
        return None
    model_types = model_types_of(config, section)
    if not embeds_its_vocabulary(model_types) or changes_its_vocabulary(model_types):
        return None
    return TokenRows(size.value, f"{size.path} of config.json", section)


def _tables(weights: Weights, *patterns: re.Pattern[str]) -> list[tuple[str, Tensor]]:
    """The matrices of one row a token, by their names; those of other towers are left out."""
    return [
        (name, tensor)
        for name, tensor in weights.tensors.items()
        if len(tensor.shape) == 2
        and tensor.dtype in _FLOATS
        and any(pattern.fullmatch(name) for pattern in patterns)
        and part_of(name.removesuffix("shared.weight")) == "text"
    ]


def _vocabulary(config: Mapping[str, Any]) -> Entry | None:
    """The one ``vocab_size`` of a config; ``None`` where it has none or several."""
    found = [
        entry
        for entry in entries(config)
        if entry.key == "vocab_size" and _count(entry.value) and part_of(entry.section) == "text"
    ]
    if len({entry.value for entry in found}) != 1:
        return None
    return found[-1]  # the innermost is the text model's own


def _sizes(config: Mapping[str, Any]) -> set[int]:
    """Every number of rows that the config accounts for."""
    found = [e for e in entries(config) if _SIZE.fullmatch(e.key) and _count(e.value)]
    sizes = {entry.value for entry in found}
    own = {entry.value for entry in found if entry.key == "vocab_size"}
    for entry in entries(config):
        if not _count(entry.value):
            continue
        if entry.key == "additional_vocab_size":
            sizes |= {size + entry.value for size in own}
        if entry.key.startswith("pad_vocab_size"):
            sizes |= {-(-size // entry.value) * entry.value for size in own}
    return sizes


def _count(value: object) -> bool:
    return type(value) is int and value > 0
