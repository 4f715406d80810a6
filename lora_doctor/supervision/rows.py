"""The rows that are judged: plain lists of integers, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lora_doctor.results.supervision import LossOn

#: The label that torch's cross entropy leaves out.
IGNORED = -100
#: How labels belong to tokens. ``causal``: one a token; the model shifts them, so that the first is
#: never predicted. ``aligned``: one a token, not shifted (token classes, masked tokens).
#: ``seq2seq``: a sequence of their own. ``classes``: one or a few for the row.
Layout = Literal["causal", "aligned", "seq2seq", "classes"]


@dataclass(frozen=True)
class Row:
    """One sample as the model and its loss get it.

    A dry run fills ``input_ids``, ``labels`` and ``attention_mask`` from a batch of the user's own
    collator, one ``Row`` for each line of it; whatever else is not known stays at its default, and
    nothing is concluded from it.
    """

    #: Token ids, shape (tokens,); padding may be among them where ``attention_mask`` says so.
    input_ids: Sequence[int]
    #: Labels: shape (tokens,) where ``layout`` is ``causal`` or ``aligned``; else any length.
    labels: Sequence[int]
    #: Number of the row, from 1 in the order of the data set.
    number: int = 1
    #: 1 for a token, 0 for padding, shape (tokens,); ``None``: no padding.
    attention_mask: Sequence[int] | None = None
    #: Token ids before the length limit; ``None`` where that is not known.
    uncut_ids: Sequence[int] | None = None
    #: Labels before the length limit.
    uncut_labels: Sequence[int] | None = None
    #: The prompt alone, tokenized as at inference; ``None`` where the row has none.
    prompt_ids: Sequence[int] | None = None
    #: What the template made of the row, before it was tokenized; ``None`` where not known.
    text: str | None = None
    #: The last answer as the data set has it; ``None`` where not known.
    answer: str | None = None
    #: Features that the model will have for each id that stands for a part of an image or a sound.
    features: Mapping[int, int] = field(default_factory=dict)
    #: Why the row could not be made into a sample; empty where it could.
    refused: str = ""


@dataclass(frozen=True)
class LossSettings:
    """How the rows' labels came about, and what they are measured against."""

    #: What the loss is taken on.
    loss_on: LossOn = "given"
    #: Who said so.
    loss_from: str = "the collator"
    layout: Layout = "causal"
    #: Tokens that a row may have; ``None`` without a limit.
    max_length: int | None = None
    #: Labels from 0 up to, not including, this are known; ``None`` where that is open.
    label_count: int | None = None
    #: The marker that an answer begins after, as text and as ids; empty without one.
    response_marker: str = ""
    response_ids: tuple[int, ...] = ()
    #: Whether several samples stand in one row: ends and prompts of each are not looked for.
    packed: bool = False
