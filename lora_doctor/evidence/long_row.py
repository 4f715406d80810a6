"""A row as long as the longest of the training data, on a tiny model that has as many positions as
the real one.

Runs in a forked child; torch, transformers and PEFT are imported inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.evidence import tiny
from lora_doctor.model.error_reports import library_error
from lora_doctor.model.loading import Loader
from lora_doctor.prescription.patches import install_patches
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.long_row import LongRow
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.tiny_model.config_roles import role_of, tree

#: Tokens, at most: attention over more takes memory, and tables of learned positions are smaller.
LONGEST = 4096
_TWO_DIMENSIONS = 2
#: Rows of a table of positions that classes keep for something else, at most.
_SPARE = 8
#: What a decoder is given of a row, where the encoder takes no text.
_OF_DECODER = ("labels", "decoder_input_ids", "decoder_attention_mask")


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    length: int,
    made: str | None = None,
    patches: Sequence[Mapping[str, Any]] = (),
    joined: bool = False,
) -> dict[str, Any]:
    """A :class:`LongRow` as JSON.

    Args:
        source, recipe, patches: as every task has them.
        length: tokens of the row.
        joined: whether these are tokens of a prompt and its answer together.
        made: a file in which another task may have left the tiny model.

    Raises:
        EvidenceError: no tiny model with so many positions can be made, or it takes no text alone.
    """
    install_patches(patches)
    loader = Loader(source, Recipe.from_json(recipe))
    length = min(length, LONGEST)
    if all(number >= length + _SPARE for number in _positions(loader.config)):
        return asdict(LongRow(length))
    shrunk = tiny.make(loader, made)
    decoded = _decoder_takes_rows(loader.config, shrunk.batch, joined)
    asked = _model_with_positions(loader, shrunk, "labels" if decoded else "input_ids")
    error = asked.raised(length)
    if error is None:
        return asdict(LongRow(length))
    most = asked.most_below(length)
    if not any(abs(number - most) <= _SPARE for number in _positions(loader.config)):
        raise EvidenceError("the tiny model ends at a number of tokens that is no table's length")
    return asdict(LongRow(length, error, most, decoded))


def _model_with_positions(loader: Any, shrunk: Any, argument: str) -> _Asked:
    """The tiny model with the positions of the real one; where its batch does not fit such a model
    (Whisper's encoder takes recordings of one length), with those of the decoder."""
    everywhere = _with_positions(shrunk.config, loader.config)
    of_decoder = _with_positions(shrunk.config, loader.config, ("target", "decoder"))
    for config in (everywhere, of_decoder) if argument == "labels" else (everywhere,):
        asked = _Asked(loader.build("cpu", config=config).eval(), shrunk.batch, argument)
        if asked.own_length is not None and asked.raised(asked.own_length) is None:
            return asked
    raise EvidenceError("the tiny model with all positions takes no batch")


def _decoder_takes_rows(config: Any, batch: Any, joined: bool) -> bool:
    """Whether the tokens of a row are all for the decoder: of a model that hears or sees.

    Raises:
        EvidenceError: it is not known which part of the model takes how many of them.
    """
    decodes = bool(getattr(config, "is_encoder_decoder", False))
    if batch is not None and batch.modality == ["text"]:
        if decodes and joined:
            raise EvidenceError("prompts go to the encoder, answers to the decoder")
        return False
    if batch is None or not decodes or "text" in batch.modality or "labels" not in batch.inputs:
        raise EvidenceError("the tiny model takes no batch of text alone")
    return True


def _positions(config: Any) -> Iterator[int]:
    """Every number of positions in a config."""
    for node in tree(config).walk():
        for key, value in node.values.items():
            if type(value) is int and role_of(key, value) == "positions":
                yield value


def _with_positions(small: Any, real: Any, parts: Sequence[str] = ("",)) -> Any:
    """The small config with the numbers of positions of the real one, where their names or those
    of their part of the config have one of these words."""
    config = copy.deepcopy(small)
    originals = {node.path: node.values for node in tree(real).walk()}
    for node in tree(config).walk():
        for key in node.values:
            value = originals.get(node.path, {}).get(key)
            if not any(part in f"{node.path}.{key}" for part in parts):
                continue
            if type(value) is int and role_of(key, value) == "positions":
                node.set(key, value)
    return config


class _Asked:
    """A model that is asked for rows of several lengths, which it takes as this argument."""

    def __init__(self, model: Any, batch: Any, argument: str) -> None:
        self._model = model
        self._inputs = batch.inputs
        self._names = _OF_DECODER if argument == "labels" else tuple(self._inputs)
        ids = self._inputs.get(argument)
        plain = ids is not None and ids.dim() == _TWO_DIMENSIONS
        #: Tokens of the batch that the tiny model came with.
        self.own_length: int | None = int(ids.shape[1]) if plain else None

    def raised(self, length: int) -> Any:
        """What a row of this many tokens raises, as an ``ErrorReport``; ``None`` where it fits."""
        import torch

        try:
            with torch.no_grad():
                self._model(**{name: self._of(length, name) for name in self._inputs})
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return library_error(error)
        return None

    def most_below(self, length: int) -> int:
        """The longest row that fits, where one of ``length`` does not."""
        fits, fails = self.own_length or 0, length
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self.raised(middle) is None:
                fits = middle
            else:
                fails = middle
        return fits

    def _of(self, length: int, name: str) -> Any:
        """One row of an argument; one with an entry for each token is repeated to this length."""
        import torch

        value = self._inputs[name]
        per_token = (
            name in self._names
            and isinstance(value, torch.Tensor)
            and value.dim() >= _TWO_DIMENSIONS
            and value.shape[1] == self.own_length
        )
        if not per_token:
            return value[:1] if isinstance(value, torch.Tensor) and value.dim() else value
        row = value[:1]
        times = -(-length // row.shape[1])
        return torch.cat([row] * times, dim=1)[:, :length]
