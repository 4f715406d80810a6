"""How many labels of a row belong to padding: the model is then trained to write padding."""

from __future__ import annotations

from collections.abc import Sequence

from lora_doctor.results.supervision import TokenizerFacts
from lora_doctor.supervision.rows import IGNORED, LossSettings, Row


def padding_labels(row: Row, tokenizer: TokenizerFacts, settings: LossSettings) -> int:
    """Labels of padding that the loss is taken on.

    Padding is what the attention mask leaves out; where there is no mask, and in labels of their
    own sequence, the padding tokens at the end of the row, of which one ends the answer where it is
    the same token.
    """
    mask, labels = row.attention_mask, row.labels
    if settings.layout == "seq2seq":
        return _at_the_end(labels, labels, tokenizer)
    if settings.layout != "causal" or settings.packed or len(labels) != len(row.input_ids):
        return 0
    if mask is None:
        return _at_the_end(row.input_ids, labels, tokenizer)
    pairs = list(zip(mask, labels, strict=False))[1:]  # nothing predicts the first token
    return sum(not real and label != IGNORED for real, label in pairs)


def _at_the_end(ids: Sequence[int], labels: Sequence[int], tokenizer: TokenizerFacts) -> int:
    """Of padding tokens at the end of ``ids``, those with a label."""
    pad = tokenizer.pad_id
    if pad is None:
        return 0
    start = len(ids)
    while start > 0 and ids[start - 1] == pad:
        start -= 1
    start += pad in tokenizer.end_ids
    return sum(label != IGNORED for label in labels[start:])
