"""Rows of a data file through the model's own tokenizer: what is supervised, without a script.

Runs in a child process. The tokenizer is loaded by transformers from the model's files; code of its
repository runs only where the user trusts it. Rows are made as TRL's ``SFTTrainer`` makes them, and
labels by the collator that the recipe names, where it names one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError, LimitError
from lora_doctor.evidence.tokenizer import (
    apply_keys,
    is_id,
    load_tokenizer,
    model_json,
    stop_ids,
    training_template,
)
from lora_doctor.limits import EVALUATION_ROWS
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.note import Note
from lora_doctor.results.samples import Samples
from lora_doctor.results.supervision import (
    EvaluationSet,
    LossOn,
    OtherLoss,
    Supervision,
    TokenizerFacts,
)
from lora_doctor.sandbox.worker import report_progress
from lora_doctor.supervision.collating import collated
from lora_doctor.supervision.data_file import DataFile, count_rows, fingerprint, read_rows
from lora_doctor.supervision.observe import observe
from lora_doctor.supervision.pieces import Decode
from lora_doctor.supervision.render import (
    NO_MARKS,
    Rendering,
    Tokens,
    refusal_of,
    row_of,
    tokens_of,
    why_not,
)
from lora_doctor.supervision.row_length import TRL_LENGTH
from lora_doctor.supervision.rows import IGNORED, LossSettings, Row
from lora_doctor.supervision.samples import NoSampleError, Sample, as_sample
from lora_doctor.supervision.tokenizer import describe
from lora_doctor.supervision.training_plan import training_plan
from lora_doctor.text import single_line

_OTHERS: tuple[LossOn, ...] = ("all", "assistant", "completion")
#: Suffixes of config keys that hold the id of a place for a part of an image or a sound.
_PLACEHOLDERS = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index",
                 "video_token_id")  # fmt: skip


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    patches: Sequence[Mapping[str, Any]] = (),
    *,
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """:meth:`Supervision.for_parent` of a data file.

    Args:
        data: ``file``, ``rows`` (how many are looked at), ``evaluation`` (a file or ``None``),
            ``samples`` (see :data:`~lora_doctor.results.samples.Samples`), ``classes`` (how many
            the program gives the model, 0 if that is not known; ``None``: the config decides) and
            ``by_default`` (whether a program was read, and leaves them to the config).

    Raises:
        InputError: a file is not what its name says, or a key of the recipe cannot be met.
        EvidenceError: the tokenizer cannot be loaded here, a package is missing, a limit struck.
    """
    try:
        report_progress("reading the data")
        file = read_rows(Path(data["file"]), int(data["rows"]))
        evaluation = _evaluation(data.get("evaluation"), Path(data["file"]), file)
        report_progress("tokenizing rows of the data")
        reader = _Reader.make(source, Recipe.from_json(recipe))
        reader = replace(
            reader, classes=data.get("classes"), by_default=bool(data.get("by_default"))
        )
        found = reader.read(file, Path(data["file"]).name, data["samples"])
    except LimitError as error:
        raise EvidenceError(str(error), remedy="limit") from None
    return replace(found, evaluation=evaluation).for_parent()


@dataclass(frozen=True)
class _Reader:
    recipe: Recipe
    tokenizer: Any
    facts: TokenizerFacts
    how: Rendering
    config: Mapping[str, Any]
    #: As the program has them, see :func:`gather`.
    classes: int | None = None
    by_default: bool = False

    @classmethod
    def make(cls, source: Mapping[str, Any], recipe: Recipe) -> _Reader:
        tokenizer = load_tokenizer(source)
        config = model_json(source, "config.json")
        apply_keys(tokenizer, recipe)
        ids = {value for key, value in config.items() if key in _PLACEHOLDERS and is_id(value)}
        facts = describe(tokenizer, stop_ids(source, config, tokenizer), sorted(ids))
        marker = recipe.get("response_template") or ""
        how = Rendering(
            tokenizer,
            append_eos=recipe.get("data_collator") is None,
            max_length=recipe.get("max_length"),
            truncation_mode=recipe.get("truncation_mode") or "keep_start",
            response_ids=tuple(tokenizer(marker, add_special_tokens=False)["input_ids"])
            if marker
            else (),
            chat_template=training_template(tokenizer, facts, recipe),
        )
        return cls(recipe, tokenizer, facts, how, config)

    def read(self, file: DataFile, name: str, samples: Samples) -> Supervision:
        """The evidence on these rows."""
        made, refused = self._samples(file.rows)
        some = [sample for _, sample, _ in made]
        settings, without_effect = self._settings(some)
        rows = [self._row(tokens, sample, number, settings) for number, sample, tokens in made]
        collator = self.recipe.get("data_collator")
        if collator and rows:
            rows = collated(rows, self.tokenizer, collator)
            settings = replace(settings, loss_on="given", loss_from=f"data_collator {collator}")
        found = observe(
            sorted([*rows, *refused], key=lambda row: row.number),
            self._unused(rows),
            settings,
            origin=f"{len(file.rows):,} of {file.total:,} rows of {name}, the model's tokenizer",
            decode=None if samples == "none" else self._decode(),
            rows_total=file.total,
        )
        packed = bool(self.recipe.get("packing"))
        return replace(
            found,
            samples=samples,
            asked_without_effect=without_effect,
            others=self._others([(sample, tokens) for _, sample, tokens in made], found.loss_on),
            plan=None
            if packed
            else training_plan(file.total, self.recipe.values, partial_steps=_partial_steps()),
            notes=tuple(self._notes(some, found)),
        )

    def _samples(
        self, rows: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> tuple[list[tuple[int, Sample, Tokens]], list[Row]]:
        """Rows with their tokens, and those that could not be made into any."""
        made: list[tuple[int, Sample, Tokens]] = []
        refused: list[Row] = []
        for number, row in rows:
            try:
                sample = as_sample(row)
                made.append((number, sample, tokens_of(sample, self.how)))
            except NoSampleError as error:
                refused.append(Row((), (), number, refused=single_line(str(error), 300)))
            except Exception as error:  # noqa: BLE001 - templates raise what they like
                refused.append(Row((), (), number, refused=refusal_of(error)))
        return made, refused

    def _settings(self, samples: Sequence[Sample]) -> tuple[LossSettings, str]:
        """What the loss is taken on, as TRL's ``SFTTrainer`` decides it; and the setting that was
        asked for and has no effect on these rows."""
        asked, said_by = self._asked(samples)
        without_effect = ""
        if asked != "given":
            reason = why_not(samples, asked, self.how) if samples else ""
            # Of conversations it can only be that this transformers marks no tokens.
            if reason and asked == "assistant" and any(one.messages for one in samples):
                raise EvidenceError(f"assistant_only_loss: {reason}")
            if reason:
                without_effect = f"{said_by}: {reason}"
                asked, said_by = "all", f"{said_by}, without effect: {reason}"
        classes = bool(samples) and all(sample.kind == "classes" for sample in samples)
        return (
            LossSettings(
                loss_on=asked,
                loss_from=said_by,
                layout="classes" if classes else "causal",
                max_length=self.how.max_length,
                label_count=self._label_count(classes or "TOKEN" in self._classifies),
                response_marker=self.recipe.get("response_template") or "",
                response_ids=self.how.response_ids,
            ),
            without_effect,
        )

    def _asked(self, samples: Sequence[Sample]) -> tuple[LossOn, str]:
        recipe = self.recipe
        if samples and all(sample.kind == "tokens" and sample.labels for sample in samples):
            return "given", "labels of the rows"
        if recipe.get("response_template"):
            return "response", "response_template"
        if recipe.get("assistant_only_loss"):
            return "assistant", "assistant_only_loss"
        if recipe.get("completion_only_loss"):
            return "completion", "completion_only_loss"
        pairs = bool(samples) and all(one.kind == "prompt-completion" for one in samples)
        if pairs and recipe.get("completion_only_loss") is None:
            return "completion", "rows of prompt and completion"
        return "all", "no setting of the loss"

    def _row(self, tokens: Tokens, sample: Sample, number: int, settings: LossSettings) -> Row:
        if sample.kind == "classes":
            label = sample.label if type(sample.label) is int else 0
            return Row(list(tokens.ids), [label], number, text=tokens.text)
        loss_on = settings.loss_on
        if loss_on not in tokens.masks and not (loss_on == "given" and tokens.given is not None):
            # TRL masks only rows that have such a part; another row is trained on as a whole.
            loss_on = "all"
        return row_of(tokens, sample, number, loss_on, self.how)

    @property
    def _classifies(self) -> str:
        """What is classified, as PEFT calls the task; empty where a language model is trained."""
        named = str(self.recipe.get("model_class") or "")
        for task, head in (("SEQ_CLS", "ForSequenceCl"), ("TOKEN_CLS", "ForTokenCl")):
            if self.recipe.get("task_type") == task or head in named:
                return task
        return ""

    def _label_count(self, classes: bool) -> int | None:
        """How many labels there are: classes of the config that names them, else tokens."""
        if not classes:
            size = self.config.get("vocab_size") or (self.config.get("text_config") or {}).get(
                "vocab_size"
            )
            return max(int(size), len(self.tokenizer)) if is_id(size) else None
        count = self._classes_of_config() if self.classes is None else self.classes
        # One class is a regression, whose labels are numbers of any size.
        return count if count > 1 else None

    def _classes_of_config(self) -> int:
        """Those that the checkpoint names; else as many as transformers gives a model, where it
        is known that the program asks for no others. 0: not known."""
        from transformers import PretrainedConfig

        names = self.config.get("id2label")
        if isinstance(names, dict):
            return len(names)
        count = self.config.get("num_labels")
        if is_id(count):
            return int(count)
        return int(PretrainedConfig().num_labels) if self.by_default and self._classifies else 0

    def _unused(self, rows: Sequence[Row]) -> TokenizerFacts:
        """The facts, with special tokens that occur in none of the rows and could be padding."""
        seen = {token for row in rows for token in (row.uncut_ids or row.input_ids)}
        ids = {name: int(token) for token, name in self.facts.names.items()}
        free = (one for one in self.facts.unused_special_tokens if ids.get(one) not in seen)
        return replace(self.facts, unused_special_tokens=tuple(free)[:8])

    def _others(
        self, made: Sequence[tuple[Sample, Tokens]], asked: LossOn
    ) -> tuple[OtherLoss, ...]:
        """What the settings that nobody asked for would supervise."""
        samples = [sample for sample, _ in made]
        if not samples or samples[0].kind in ("classes", "tokens"):
            return ()
        found = []
        for loss_on in _OTHERS:
            if loss_on == asked:
                continue
            reason = why_not(samples, loss_on, self.how)
            if not reason and loss_on == "assistant" and not self._has_marks():
                reason = NO_MARKS
            found.append(
                OtherLoss(loss_on, why_not=reason) if reason else self._other(made, loss_on)
            )
        return tuple(found)

    def _has_marks(self) -> bool:
        return self.facts.has_generation_marks or self.how.chat_template is not None

    def _other(self, made: Sequence[tuple[Sample, Tokens]], loss_on: LossOn) -> OtherLoss:
        counts = []
        for sample, tokens in made:
            part: LossOn = loss_on if loss_on in tokens.masks else "all"
            labels = row_of(tokens, sample, 1, part, self.how).labels
            counts.append(sum(label != IGNORED for label in labels[1:]))
        return OtherLoss(loss_on, sum(counts), sum(count == 0 for count in counts))

    def _decode(self) -> Decode:
        tokenizer = self.tokenizer

        def decode(ids: Sequence[int]) -> str:
            return str(
                tokenizer.decode(
                    list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
            )

        return decode

    def _notes(self, samples: Sequence[Sample], found: Supervision) -> list[Note]:
        recipe = self.recipe
        notes = []
        joined = next((sample.joined for sample in samples if sample.joined), "")
        if joined:
            notes.append(
                Note(
                    "choice", f"the rows were joined as {joined}; a script may join them otherwise"
                )
            )
        if recipe.get("data_collator") is None:
            notes.append(
                Note(
                    "not-observed",
                    "without the script it is not known which collator makes the labels; they are "
                    "made as TRL's SFTTrainer makes them (--data-collator names another)",
                )
            )
        if found.max_length is None and found.longest > TRL_LENGTH:
            notes.append(
                Note(
                    "not-observed",
                    f"no --max-length was given, so no row was cut; the longest has "
                    f"{found.longest:,} tokens, and TRL's default cuts at {TRL_LENGTH:,}",
                )
            )
        if self.how.chat_template is not None:
            notes.append(
                Note("choice", "the installed TRL trains on a template of its own that has "
                     "{% generation %} marks; the rows were made with it")
            )  # fmt: skip
        return notes


def _partial_steps() -> bool:
    """Whether the installed Trainer counts the batches left at the end of an epoch as a step: it
    does since it has a method that counts."""
    try:
        from transformers import Trainer
    except ImportError:
        return True
    return hasattr(Trainer, "set_initial_training_values")


def _evaluation(path: str | None, training: Path, sampled: DataFile) -> EvaluationSet | None:
    """The evaluation set against the whole training set."""
    if path is None:
        return None
    from lora_doctor.limits import MOST_DATA_ROWS

    found = count_rows(Path(path), EVALUATION_ROWS)
    if not found.total:
        return EvaluationSet(0, 0)
    known = sampled
    if sampled.total > len(sampled.rows):
        known = read_rows(training, max(EVALUATION_ROWS, MOST_DATA_ROWS))
    there = {fingerprint(row) for _, row in known.rows}
    same = sum(fingerprint(row) in there for _, row in found.rows)
    return EvaluationSet(found.total, same)
