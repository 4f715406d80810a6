"""The rows of a program through its own trainer, as installed: the set made, the trainer made on a
tiny model, a few batches collated and a loss computed of them.

Runs in a child process. The functions of the program are not run but worked out
(``plain_code.py``); where that cannot be done here, or something else decides, nothing is said.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.evidence import fewer_layers, refused_trainer
from lora_doctor.evidence.own_rows import Maker, as_collator, as_rows
from lora_doctor.evidence.plain_values import NotFollowedError
from lora_doctor.evidence.refused_arguments import release
from lora_doctor.evidence.refused_trainer import class_named, is_of_trl, new_arguments, quietly
from lora_doctor.evidence.stages import ProgramError, Stage, raised_at, shown
from lora_doctor.evidence.tokenizer import load_tokenizer
from lora_doctor.model import loading
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.first_batch import FirstBatch
from lora_doctor.results.training_signal import OneLabel
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.sandbox.worker import report_progress

#: Arguments of transformers' Trainer that decide about rows and batches; of TRL's own all count
#: that have a say in what the trainer is.
_COUNT = frozenset(
    {"per_device_train_batch_size", "remove_unused_columns", "label_names", "group_by_length",
     "length_column_name", "dataloader_drop_last", "label_smoothing_factor",
     "train_sampling_strategy", "model_init_kwargs"}
)  # fmt: skip
#: Columns of classes, and rows of which it means something that all have one.
_OF_LABELS, _LEAST = ("label", "labels"), 16
_BATCHES = 8
#: Rows of a batch, where the program asks for more, and with a large vocabulary.
_ROWS, _ROWS_IF_LARGE = 16, 2
_LARGE = 64_000
#: Numbers in the logits of a batch, at most.
_LOGITS = 60_000_000
#: Parameters of the tiny model beside its embeddings, and its width.
_INNER, _WIDTH, _TABLES = 5_000_000, 64, 2


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    plan: Mapping[str, Any],
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A :class:`FirstBatch` as JSON.

    Args:
        source, recipe, patches: as every task has them.
        plan: what ``own_rows`` of ``recipe/program/first_batch.py`` describes, as JSON.

    Raises:
        EvidenceError: it cannot be told here what the trainer makes of the rows.
    """
    if Recipe.from_json(recipe).get("chat_template_path") is not None:
        raise EvidenceError("the trainer takes another chat template than the tokenizer's")
    cls = class_named(plan["name"])
    loop = plan["name"].startswith("torch.")
    try:
        tokenizer = _tokenizer(source, plan["tokenizer"])
        run = _Run(cls, plan, source, Recipe.from_json(recipe), tokenizer)
        with tempfile.TemporaryDirectory(prefix="lora-doctor-") as folder, quietly():
            return dataclasses.asdict(run.of_a_loop(folder) if loop else run.looked_at(folder))
    except NotFollowedError as error:
        raise EvidenceError(f"the rows are made by more than plain code: {error}") from None


def _tokenizer(source: Mapping[str, Any], plan: Mapping[str, Any]) -> Any:
    """The model's own, with what the program sets on it; ``None`` where it has none."""
    maker = Maker(None, None)
    named = {name: maker.value(one) for name, one in plan["named"].items()}
    try:
        tokenizer = load_tokenizer(source, **named)
    except EvidenceError:
        return None
    maker.tokenizer = tokenizer
    for name, one in plan["attributes"].items():
        if one["is"] == "unknown":  # set under a condition, as a rule where there is none
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
        else:
            setattr(tokenizer, name, maker.value(one))
    return tokenizer


@dataclasses.dataclass
class _Run:
    """One trainer of a program, described by ``plan``."""

    cls: Any
    plan: Mapping[str, Any]
    source: Mapping[str, Any]
    recipe: Recipe
    tokenizer: Any
    #: What has been reached, for the answer.
    rows: int = 0
    batches: int = 0
    columns: tuple[str, ...] = ()
    one_label: OneLabel | None = None
    #: The tiny model, a batch of ours that it takes, the recipe for it, and the most rows of a
    #: batch that it is given.
    _small: Any = None
    _batch: Any = None
    _fitted: Any = None
    _most_rows: int = _ROWS

    def looked_at(self, folder: str) -> FirstBatch:
        """Of a trainer."""
        maker = self._maker(folder)
        try:
            train = self._set(maker)
            model = self._model()
            maker.model = model
            given = self._given(maker)
            report_progress("making the trainer with its rows")
            trainer = self._trainer(copy.deepcopy(model), train, given, folder)
            self._batches(trainer)
        except ProgramError as found:
            self._require_ours_works(found.stage, folder)
            return self._answer(maker, found)
        return self._answer(maker)

    def of_a_loop(self, folder: str) -> FirstBatch:
        """Of a loader whose batches a loop takes."""
        maker = self._maker(folder)
        try:
            train = self._set(maker)
            given = self._given(maker)
            report_progress("collating its rows")
            with Stage("batch"):
                size = min(self.plan["batch_size"], _ROWS)
                batches = list(
                    itertools.islice(self.cls(train, batch_size=size, **given), _BATCHES)
                )
            self.batches = len(batches)
            _require_tensors(batches, loading.Loader(self.source, self.recipe).model_class)
        except ProgramError as found:
            return self._answer(maker, found)
        return self._answer(maker)

    def _maker(self, folder: str) -> Maker:
        maker = Maker(self.tokenizer, None)
        maker.cache, maker.folder = folder, Path(self.plan["folder"])
        return maker

    def _set(self, maker: Maker) -> Any:
        report_progress("making the rows")
        with Stage("rows"):
            train = as_rows(maker.value(self.plan["train"]))
        self._count(train)
        return train

    def _given(self, maker: Maker) -> dict[str, Any]:
        """What else the trainer is given of the program's."""
        with Stage("collator"):
            given = {n: as_collator(maker.value(o)) for n, o in self.plan["with"].items()}
        maker.line = maker.budget.line = 0
        return given

    def _answer(self, maker: Maker, found: ProgramError | None = None) -> FirstBatch:
        answer = FirstBatch(
            release(self.cls.__module__.partition(".")[0]), self.rows, self.batches,
            columns=self.columns, one_label=self.one_label,
        )  # fmt: skip
        if found is None:
            return answer
        error = found.error
        return dataclasses.replace(
            answer,
            stage=found.stage,
            kind=type(error).__name__,
            message=shown(error),
            raised_at=raised_at(error),
            line=maker.budget.line or maker.line,
        )

    def _count(self, train: Any) -> None:
        self.rows = len(train) if hasattr(type(train), "__len__") else 0
        if hasattr(type(train), "__len__") and not self.rows:
            raise NotFollowedError("no rows are left")
        names = getattr(train, "column_names", None)
        first = train[0] if names is None and isinstance(train, list) else None
        if first is not None and not isinstance(first, dict):
            raise NotFollowedError("what stands for rows")
        found = names if isinstance(names, list) else (first if isinstance(first, dict) else ())
        self.columns = tuple(str(name) for name in found)
        self.one_label = self._one_label(train)

    def _one_label(self, train: Any) -> OneLabel | None:
        """The class that all rows have; ``None`` of few rows, of numbers that are no classes, and
        where the rows have several."""
        classes = self.plan["labels"].get("num_labels")
        name = next((one for one in _OF_LABELS if one in self.columns), None)
        if name is None or self.rows < _LEAST or classes == 1:
            return None
        classifier = "SequenceClassification" in str(self.recipe.get("model_class"))
        kinds = (bool, int) if classifier else bool  # of other trainers, which answers are wanted
        columns = hasattr(train, "unique")
        first = (train.with_format(None) if columns else train)[0][name]
        if not isinstance(first, kinds):
            return None
        found = train.unique(name) if columns else [row[name] for row in train]
        if any(one != first or not isinstance(one, kinds) for one in found):
            return None
        return OneLabel(name, str(first), self.rows, classes)

    def _model(self) -> Any:
        """Tiny, with the vocabulary and the positions of the real one, and as many labels."""
        from lora_doctor.tiny_model.config_roles import flat_ints, role_of, tree
        from lora_doctor.tiny_model.shrink.shrink import DATA_ROLES, ShrinkError, shrink

        report_progress("building a tiny model for its rows")
        loader = loading.Loader(self.source, self.recipe)
        config = _with_labels(loader.config, self.plan["labels"])
        numbers = [
            number
            for node in tree(copy.deepcopy(config)).walk()
            for key, value in node.values.items()
            if role_of(key, value) in ("vocab", "positions", "tokens")
            for number in flat_ints(value)
            if 0 < number < 2_000_000
        ]
        most = _INNER + sum(numbers) * _WIDTH * _TABLES
        try:
            shrunk = shrink(
                config, lambda small: loader.build("cpu", config=small),
                max_parameters=most, keep_roles=DATA_ROLES,
            )  # fmt: skip
        except ShrinkError as error:
            raise EvidenceError(f"no tiny model of this class can be made: {error}") from None
        if refused_trainer.takes_more_than_text(shrunk.model):
            raise EvidenceError("the model takes more than text")
        self._fitted = fewer_layers.fitted(self.recipe, shrunk.model, loader).recipe
        model = shrunk.model
        model.config.problem_type = self.plan["labels"].get("problem_type")
        if getattr(model.config, "pad_token_id", None) is None and self.tokenizer is not None:
            model.config.pad_token_id = self.tokenizer.pad_token_id
        more = len(self.tokenizer) if self.tokenizer is not None else 0
        if self.plan["resized"] and more > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(more)
        self._small, self._batch = model, shrunk.batch
        self._most_rows = _ROWS_IF_LARGE if max(numbers, default=0) > _LARGE else _ROWS
        return model

    def _require_ours_works(self, stage: str, folder: str) -> None:
        """Raises EvidenceError where the trainer, or the model, takes nothing of ours either: then
        what it says to the rows says nothing about them."""
        if stage == "trainer":
            maker = refused_trainer.Maker(self.cls, self.plan, self._small, self._fitted, folder)
            if not refused_trainer.takes_some_rows(maker):
                raise EvidenceError("the trainer cannot be made here, whatever it is given")
        if stage == "loss":
            if self._batch is None:
                raise EvidenceError("the tiny model takes no batch")
            try:
                self._small(**copy.deepcopy(self._batch.inputs))
            except Exception as error:
                raise EvidenceError(f"the tiny model takes no batch: {error}") from error

    def _trainer(self, model: Any, train: Any, given: dict[str, Any], folder: str) -> Any:
        arguments = self._arguments(folder)
        known = refused_trainer.taken(self.cls)
        named = "processing_class" if "processing_class" in known else "tokenizer"
        if is_of_trl(self.cls) or self.plan["tokenizer_given"]:
            if self.tokenizer is None:
                raise EvidenceError("the model has no tokenizer here")
            given[named] = self.tokenizer
        if "reward_funcs" in known:
            given["reward_funcs"] = [refused_trainer.no_reward]
        try:
            adapter = loading.peft_config(self._fitted)
        except Exception as error:
            raise EvidenceError(f"PEFT rejects the adapter: {error}") from error
        if "peft_config" in known and not self.plan["adapted"]:
            given["peft_config"] = adapter
        else:
            model = _adapted(model, adapter)
        with Stage("trainer"):
            return self.cls(model=model, args=arguments, train_dataset=train, **given)

    def _arguments(self, folder: str) -> Any:
        made = self.plan["arguments"]
        name = made["name"] if made else refused_trainer.own_arguments_class(self.cls)
        values = dict(made["values"]) if made else {}
        known = {
            one.name for one in dataclasses.fields(class_named("transformers.TrainingArguments"))
        }
        kept = {
            key: value
            for key, value in values.items()
            if key in _COUNT or (key not in known and not refused_trainer.LEFT_OUT.fullmatch(key))
        }
        kept.pop("model_init_kwargs", None)
        size = kept.get("per_device_train_batch_size", 8)
        kept["per_device_train_batch_size"] = min(size, self._most_rows)
        try:
            return new_arguments(name, kept, folder)
        except Exception as error:
            raise EvidenceError(f"the arguments of the trainer are refused: {error}") from error

    def _batches(self, trainer: Any) -> None:
        report_progress("collating its rows")
        with Stage("batch"):
            loader = trainer.get_train_dataloader()
            found = list(itertools.islice(iter(loader), _BATCHES))
        self.batches = len(found)
        if not found:
            raise NotFollowedError("no batch is left")
        if hasattr(trainer, "reward_funcs") or self.plan["own_loss"]:
            return
        report_progress("computing a loss of its rows")
        trainer.model.train()
        for batch in found:
            if _logits(trainer.model, batch) > _LOGITS:
                return
            with Stage("loss"):
                trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()


def _require_tensors(batches: Sequence[Any], model_class: Any) -> None:
    """Raises what a model says to a list in the place of a tensor: of lists of one length torch's
    own collator makes a list for each place in them."""
    taken = inspect.signature(model_class.forward).parameters
    for batch in batches:
        for name, value in batch.items() if isinstance(batch, dict) else ():
            if name in taken and isinstance(value, list):
                error = TypeError(
                    f"{name} of a batch is a list of {len(value)} parts, where the model takes a "
                    "tensor"
                )
                raise ProgramError("batch", error)


def _adapted(model: Any, adapter: Any) -> Any:
    import peft

    try:
        return peft.get_peft_model(model, adapter)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise EvidenceError(f"PEFT puts no adapter on: {error}") from error


def _with_labels(config: Any, labels: Mapping[str, Any]) -> Any:
    own = copy.deepcopy(config)
    number = labels.get("num_labels", labels.get("id2label"))
    if isinstance(number, int) and hasattr(own, "num_labels"):
        own.num_labels = number
    if "problem_type" in labels:
        own.problem_type = labels["problem_type"]
    return own


def _logits(model: Any, batch: Any) -> int:
    """Numbers in the logits of a batch of tokens."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    width = head.weight.shape[0] if head is not None else 1
    sizes = [one.numel() for one in batch.values() if hasattr(one, "numel")]
    return max(sizes, default=0) * width
