"""What is supervised: which tokens of which rows the loss sees. Only data; no torch.

One evidence object whatever the rows came from: a dry run's own batches, or a data file read with
the model's tokenizer. Texts of rows can be private: ``to_json`` leaves them out unless the user
asked for them (``samples="all"``), and with ``samples="none"`` they were never kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lora_doctor.results.from_json import from_json
from lora_doctor.results.note import Note
from lora_doctor.results.samples import Samples

#: What the loss is taken on. ``all``: every token. ``assistant``: the assistant's turns, by the
#: template's generation marks. ``completion``: what follows the prompt. ``response``: what follows
#: a response marker. ``given``: the labels that the rows or the collator bring.
LossOn = Literal["all", "assistant", "completion", "response", "given"]
#: Row numbers that are kept of each kind.
NUMBERS_KEPT = 8


@dataclass(frozen=True)
class RowSet:
    """Rows of which something holds."""

    #: How many of the rows that were looked at.
    count: int = 0
    #: Numbers of the first few, from 1 in the order of the data set.
    numbers: tuple[int, ...] = ()

    @classmethod
    def of(cls, numbers: list[int]) -> RowSet:
        return cls(len(numbers), tuple(numbers[:NUMBERS_KEPT]))

    def __bool__(self) -> bool:
        return self.count > 0


@dataclass(frozen=True)
class TokenizerFacts:
    """What is known of the tokenizer and of where generation stops."""

    #: Id of the token that begins a text; ``None`` where there is none.
    bos_id: int | None = None
    #: Id of the token that ends a text.
    eos_id: int | None = None
    #: Id of the token that fills a batch.
    pad_id: int | None = None
    #: Ids that the chat template puts behind an answer to end it, such as ``<|im_end|>``.
    end_of_turn_ids: tuple[int, ...] = ()
    #: Ids at which generation stops, by ``generation_config.json`` and the tokenizer.
    stop_ids: tuple[int, ...] = ()
    #: Whether ``stop_ids`` is known; without it nothing is said about where generation stops.
    stop_known: bool = False
    #: Whether there is a chat template.
    has_template: bool = False
    #: Whether the template marks the assistant's turns with ``{% generation %}``.
    has_generation_marks: bool = False
    #: What the template adds where an answer is to begin.
    generation_prompt: str = ""
    #: Ids that stand for parts of an image or a sound.
    placeholder_ids: tuple[int, ...] = ()
    #: Token of each id that is named here, as the tokenizer writes it.
    names: Mapping[str, str] = field(default_factory=dict)
    #: Special tokens that occur in none of the rows and end nothing: free to be padding.
    unused_special_tokens: tuple[str, ...] = ()

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        eos = () if self.eos_id is None else (self.eos_id,)
        return frozenset((*self.end_of_turn_ids, *eos))

    @property
    def end_name(self) -> str:
        """The token that should end an answer."""
        ends = self.end_of_turn_ids or (() if self.eos_id is None else (self.eos_id,))
        return self.name(ends[0]) if ends else "the end-of-text token"

    def name(self, token: int | None) -> str:
        return "none" if token is None else self.names.get(str(token), str(token))


@dataclass(frozen=True)
class TokenPiece:
    """One token of a row."""

    #: Its text, special tokens by their names.
    text: str
    #: Whether the loss is taken on it.
    supervised: bool


@dataclass(frozen=True)
class ShownRow:
    """One row, token by token."""

    #: Number of the row, from 1 in the order of the data set.
    number: int
    #: Tokens of the row as the model gets it, padding not counted.
    tokens: int
    #: Tokens that the loss is taken on.
    supervised: int
    #: Tokens before the length limit cut it.
    uncut_tokens: int
    #: Its tokens; empty where texts are left out.
    pieces: tuple[TokenPiece, ...] = ()
    #: Tokens left out of the middle of ``pieces``.
    left_out: int = 0
    #: The first of the tokens behind these that the length limit cuts off; empty without any.
    cut: tuple[TokenPiece, ...] = ()


@dataclass(frozen=True)
class OtherLoss:
    """What another setting of the loss would supervise in the same rows."""

    #: The setting.
    loss_on: LossOn
    #: Tokens that it would supervise.
    supervised_tokens: int = 0
    #: Rows in which it would supervise nothing.
    rows_with_nothing: int = 0
    #: Why it cannot be had on these rows; empty where it can.
    why_not: str = ""


@dataclass(frozen=True)
class EvaluationSet:
    """The rows that the run is evaluated on."""

    #: Rows in it.
    rows: int
    #: Rows of it that are, word for word, among the training rows.
    rows_in_training: int


@dataclass(frozen=True)
class TrainingPlan:
    """How many optimizer steps the run has, and how many of them warm up."""

    #: Rows of the training set.
    rows: int
    #: Optimizer steps of an epoch.
    steps_per_epoch: int
    #: Optimizer steps of the whole run.
    steps: int
    #: Steps until the learning rate is reached.
    warmup_steps: int
    #: Rows of one optimizer step.
    rows_per_step: int
    #: What was not said and stands at the Trainer's default.
    defaults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Supervision:
    """Which tokens of which rows the loss sees, and what goes wrong there."""

    #: Where the rows and their labels came from.
    origin: str
    #: What the loss is taken on.
    loss_on: LossOn
    #: Who said so: a key of the recipe, the rows' own form, or the collator.
    loss_from: str
    #: Rows of the data set; ``None`` where its length is not known.
    rows_total: int | None
    #: Rows that were looked at.
    rows_seen: int
    #: Tokens of these rows as the model gets them, padding not counted.
    tokens: int
    #: Tokens of them that the loss is taken on.
    supervised_tokens: int
    #: The tokenizer.
    tokenizer: TokenizerFacts
    #: Tokens that a row may have; ``None`` without a limit.
    max_length: int | None = None
    #: Tokens of a row before the limit: the middle one of these rows.
    median_length: int = 0
    #: Tokens of the longest of these rows before the limit.
    longest: int = 0
    #: Its number.
    longest_row: int = 0
    #: Rows longer than the limit.
    over_limit: RowSet = RowSet()
    #: Rows that lose supervised tokens to the limit.
    answers_cut: RowSet = RowSet()
    #: Rows that lose all of them.
    cut_to_nothing: RowSet = RowSet()
    #: Rows in which nothing is supervised, and nothing was before the limit.
    nothing: RowSet = RowSet()
    #: Rows in which every token is supervised.
    everything: RowSet = RowSet()
    #: Rows whose prompt is known and is supervised as a whole.
    prompt_supervised: RowSet = RowSet()
    #: Rows whose answers end in a token that the loss is taken on.
    end_trained: RowSet = RowSet()
    #: The tokens that end these answers.
    end_tokens: tuple[int, ...] = ()
    #: Rows whose prompt is known.
    prompts: int = 0
    #: Rows in which the token that ends an answer is there and masked.
    end_masked: RowSet = RowSet()
    #: Those of them in which it is the padding token.
    end_masked_as_pad: RowSet = RowSet()
    #: Rows in which no such token follows the answer.
    end_missing: RowSet = RowSet()
    #: Rows that begin with two tokens that begin a text.
    two_bos: RowSet = RowSet()
    #: Rows in which the tokens of the response marker do not occur one after another.
    marker_missing: RowSet = RowSet()
    #: Those of them whose text has the marker all the same.
    marker_only_as_text: RowSet = RowSet()
    #: Rows whose answer is not what the template writes: a part of it is gone.
    answer_changed: RowSet = RowSet()
    #: Rows in which the tag that opens an answer stands there twice.
    opening_doubled: RowSet = RowSet()
    #: The tag of these rows, such as ``<think>``.
    doubled_tag: str = ""
    #: Rows whose prompt, as it is at inference, is not how the row begins.
    prompt_not_prefix: RowSet = RowSet()
    #: Rows with fewer places for an image or a sound than it has features.
    placeholders_cut: RowSet = RowSet()
    #: Rows in which the loss is taken on padding.
    padding_supervised: RowSet = RowSet()
    #: Labels of padding that the loss is taken on, in all these rows; not among the supervised
    #: tokens.
    padding_labels: int = 0
    #: Rows with labels that are no token and no class.
    labels_out_of_range: RowSet = RowSet()
    #: Some of these labels.
    wrong_labels: tuple[int, ...] = ()
    #: Labels from 0 up to, not including, this are known; ``None`` where that is open.
    label_count: int | None = None
    #: Rows that the template refuses, or that cannot be read as a sample.
    refused: RowSet = RowSet()
    #: What it says of the first of them.
    refusal: str = ""
    #: The response marker that was looked for.
    response_marker: str = ""
    #: Whether this setting of the loss was asked for and the rows do not have what it needs.
    asked_without_effect: str = ""
    #: Other settings of the loss on the same rows.
    others: tuple[OtherLoss, ...] = ()
    #: The evaluation set; ``None`` where none was given.
    evaluation: EvaluationSet | None = None
    #: Steps of the run; ``None`` where the number of rows is not known.
    plan: TrainingPlan | None = None
    #: Some rows, token by token; those that a finding names are among them.
    shown: tuple[ShownRow, ...] = ()
    #: Who sees the texts of ``shown``.
    samples: Samples = "people"
    #: What was chosen on the way, and what cannot be known from these rows.
    notes: tuple[Note, ...] = ()
    #: Whether the labels are those that the user's own run made.
    executed: bool = False

    @property
    def share(self) -> float:
        """Supervised tokens of all tokens, 0 to 1."""
        return self.supervised_tokens / self.tokens if self.tokens else 0.0

    @property
    def judged(self) -> int:
        """Rows that were looked at and could be made into a sample."""
        return self.rows_seen - self.refused.count

    def row(self, number: int) -> ShownRow | None:
        """The row of this number, where it is shown."""
        return next((row for row in self.shown if row.number == number), None)

    def to_json(self) -> dict[str, Any]:
        """The fields, with the share beside them; texts of rows only where the user wants them."""
        data = {**asdict(self), "share": round(self.share, 4)}
        if self.samples != "all":
            data["shown"] = [{**row, "pieces": [], "cut": []} for row in data["shown"]]
        return data

    def for_parent(self) -> dict[str, Any]:
        """The fields with texts: what the child process sends to its parent."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Supervision:
        return from_json(cls, data)
