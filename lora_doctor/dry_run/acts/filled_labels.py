"""Rows with fewer labels than tokens, which a collator fills up: words were labelled, and the
tokenizer made several tokens of some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What a collator fills up with.
_IGNORED = -100


class Filled:
    """``rows`` with a label for each token, so it should be; ``short`` of them have fewer, and the
    collator has put its own behind them. ``labels`` and ``tokens``: of the first such row.

    Of a model with a decoder the labels are another text, and are not compared.
    """

    def __init__(self, model: Any) -> None:
        config = getattr(model, "config", None)
        self._decodes = bool(getattr(config, "is_encoder_decoder", False))
        self.rows = self.short = self.labels = self.tokens = 0

    @property
    def counted(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("rows", "short", "labels", "tokens")}

    def add(self, rows: Sequence[Any], batch: Mapping[str, Any]) -> None:
        """Count the rows that a batch was made of."""
        names = ("input_ids", "labels", "attention_mask")
        if self._decodes or not all(hasattr(batch.get(name), "shape") for name in names):
            return
        ids, labels, mask = (batch[name] for name in names)
        if len(ids.shape) != 2 or not ids.shape == labels.shape == mask.shape:
            return
        if len(rows) != len(labels):
            return
        for row, given, line in zip(rows, labels.tolist(), mask.tolist(), strict=True):
            self._row(_own(row), given, line)

    def _row(self, own: list[int] | None, given: list[int], mask: list[int]) -> None:
        if own is None:
            return
        self.rows += 1
        tokens = sum(map(bool, mask))
        if not all(mask[:tokens]) or not 0 < len(own) < tokens:
            return  # padded at the left, where labels may well be those of the last tokens
        if given == [*own, *[_IGNORED] * (len(given) - len(own))]:
            self.short += 1
            if self.short == 1:
                self.labels, self.tokens = len(own), tokens


def _own(row: Any) -> list[int] | None:
    """The labels of a row of the set, where it has a list of them."""
    found: Any = row.get("labels", row.get("label")) if isinstance(row, Mapping) else None
    found = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, int) for one in found):
        return None
    return list(found)
