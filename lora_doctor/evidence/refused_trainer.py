"""The trainer of a script, made by its own class: on a tiny model, with the adapter of the recipe
and the arguments of the script, and with a few rows of each kind that such a trainer may be given.

Runs in a child process. What the class raises is compared with the same class with arguments of its
own and a plain adapter: only what these rows alone do not raise is an answer.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import importlib
import inspect
import io
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.evidence import fewer_layers, tiny
from lora_doctor.evidence.refused_arguments import NOT_THEIRS, class_of, named, release, text_of
from lora_doctor.evidence.reload import quantized, saved
from lora_doctor.evidence.tokenizer import load_tokenizer
from lora_doctor.model import loading, training_setup
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.refused_trainer import AskedTrainer
from lora_doctor.sandbox.memory import is_out_of_memory
from lora_doctor.sandbox.worker import report_progress

#: Arguments that say where or how fast something runs, or what is not here.
LEFT_OUT = re.compile(
    r"fp16.*|bf16.*|tf32|use_cpu|no_cuda|output_dir|report_to|push_to_hub|hub_.*|.*num_proc"
    r"|.*num_workers|torch_compile.*|model_init_kwargs|local_rank|logging_dir|use_vllm|vllm_.*"
    r"|disable_tqdm|eos_token|pad_token|chat_template_path"
)
_TURN = ({"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"})
#: Rows as trainers are given them: by what they are for.
_ROWS: Mapping[str, Mapping[str, Any]] = {
    "tokens": {"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 1], "labels": [5, 6, 7, 8]},
    "text": {"text": "one two three"},
    "messages": {"messages": list(_TURN)},
    "completion": {"prompt": "one two", "completion": "three"},
    "dialogue": {"prompt": [_TURN[0]], "completion": [_TURN[1]]},
    "preference": {"prompt": "one", "chosen": "two", "rejected": "three"},
    "judged": {"prompt": "one", "completion": "two", "label": True},
    "prompt": {"prompt": "one two three"},
}
_ROWS_EACH = 4
_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} "
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)


def gather(
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    trainer: Mapping[str, Any],
    made: str | None = None,
    patches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """An :class:`AskedTrainer` as JSON.

    Args:
        source, recipe, patches: as every task has them.
        trainer: a ``MadeTrainer`` as JSON.
        made: a file in which another task may have left the tiny model.

    Raises:
        EvidenceError: it cannot be made here, whatever it is given.
    """
    cls = class_named(trainer["name"])
    loader = loading.Loader(source, Recipe.from_json(recipe))
    shrunk = tiny.make(loader, made)
    fitted = fewer_layers.fitted(Recipe.from_json(recipe), shrunk.model, loader).recipe
    report_progress("making the trainer")
    with tempfile.TemporaryDirectory(prefix="lora-doctor-") as folder, quietly():
        maker = Maker(cls, trainer, shrunk.model, fitted, folder)
        maker = maker.with_classes(trainer.get("classes"))
        found, accepted = _asked(maker)
        if not found.message and fitted.quantized:
            found = dataclasses.replace(found, trained=_trained_if_quantized(maker))
        if accepted and trainer.get("rows"):
            found = _asked_with_rows(maker, source, found)
        return dataclasses.asdict(found)


def _trained_if_quantized(maker: Maker) -> dict[str, int]:
    """Dtypes of what the trainer trains of the model as the recipe quantizes it; empty where that
    cannot be made here. What the trainer refuses is asked on a model in float32."""
    try:
        with saved(maker.model) as folder:
            model = quantized(type(maker.model), folder, maker.recipe, "", "cpu")
        model = training_setup.for_kbit_training(model, maker.recipe)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return {}
    asked = dataclasses.replace(maker, model=model).asked
    trained: dict[str, int] = {}
    for rows in _datasets(maker.cls):
        if _answer(lambda rows=rows: trained.update(asked(rows))) is None:
            break
    return trained


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes the trainer. ``trainer``: a ``MadeTrainer`` as JSON; ``model``: tiny, never changed."""

    cls: Any
    trainer: Mapping[str, Any]
    model: Any
    recipe: Recipe
    folder: str
    #: The model's own tokenizer, for rows of the program's.
    tokenizer: Any = None

    def with_classes(self, number: int | None) -> Maker:
        """The same with a head for so many classes, where the model has a head for classes."""
        kind = type(self.model)
        if number is None or "SequenceClassification" not in kind.__name__:
            return self
        config = copy.deepcopy(self.model.config)
        config.num_labels = number
        return dataclasses.replace(self, model=kind(config))

    def plain(self, rows: Any) -> None:
        """As the class's own defaults have it, with an adapter that every model takes."""
        import peft

        arguments = new_arguments(self._own_arguments_class(), {}, self.folder)
        config = peft.LoraConfig(target_modules=[_a_linear(self.model)])
        self._make(rows, arguments, config, self._needed())

    def asked(self, rows: Any) -> dict[str, int]:
        """As the script has it. Returns the dtypes of what the trainer trains."""
        made = self.trainer["arguments"]
        values = {} if made is None else made["values"]
        kept = {name: value for name, value in values.items() if not LEFT_OUT.fullmatch(name)}
        try:
            arguments = new_arguments(self._arguments_class(), kept, self.folder)
        except Exception as error:
            raise EvidenceError(f"the arguments of the trainer are refused: {error}") from error
        given = {**self._needed(), **{name: self._other(name) for name in self.trainer["given"]}}
        if self.trainer["by_name"]:
            given.pop("quantization_config", None)  # it is for the loading that was done already
        return _trained_dtypes(self._make(rows, arguments, None, given).model)

    def _make(self, rows: Any, arguments: Any, config: Any, given: dict[str, Any]) -> Any:
        model = copy.deepcopy(self.model)
        known = taken(self.cls)
        if given.pop("ref_model", None) is not None:
            given["ref_model"] = model if self.trainer["own_reference"] else copy.deepcopy(model)
        adapter = config if config is not None else loading.peft_config(self.recipe)
        if "peft_config" in known and not (self.trainer["adapted"] and config is None):
            given["peft_config"] = adapter
        else:
            import peft

            model = peft.get_peft_model(model, adapter)
        name = "processing_class" if "processing_class" in known else "tokenizer"
        given[name] = self.tokenizer or _tokenizer(self._tokens())
        if is_of_trl(self.cls) and takes_more_than_text(self.model):
            given[name] = _processor(given[name])
        made = self.cls(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, **given)
        made.create_optimizer()
        return made

    def _arguments_class(self) -> str:
        made = self.trainer["arguments"]
        return str(made["name"]) if made is not None else own_arguments_class(self.cls)

    def _own_arguments_class(self) -> str:
        """The class whose defaults the trainer takes; the script's, where that is not known."""
        own = own_arguments_class(self.cls)
        return own if class_of(own) is not None else self._arguments_class()

    def _tokens(self) -> list[str]:
        """Tokens that the script names: its tokenizer has them."""
        values = (self.trainer["arguments"] or {}).get("values", {})
        return [values[name] for name in ("eos_token", "pad_token")
                if isinstance(values.get(name), str)]  # fmt: skip

    def _needed(self) -> dict[str, Any]:
        known = taken(self.cls)
        return {"reward_funcs": [no_reward]} if "reward_funcs" in known else {}

    def _other(self, name: str) -> Any:
        if name == "quantization_config":
            return importlib.import_module("transformers").BitsAndBytesConfig(load_in_4bit=True)
        return {"reward_funcs": [no_reward], "ref_model": True}.get(name, _function)


def _asked(maker: Maker) -> tuple[AskedTrainer, bool]:
    """What the class raises for every kind of rows that it takes, and whether it accepts one."""
    found: list[tuple[str, str, str]] = []
    taken, accepted = 0, False
    trained: dict[str, int] = {}
    ranking = maker.with_classes(1)  # the head of a reward model
    for rows in _datasets(maker.cls):
        if _answer(lambda rows=rows: maker.plain(rows)) is not None and (
            ranking is maker or _answer(lambda rows=rows: ranking.plain(rows)) is not None
        ):
            continue  # rows that this trainer does not take
        taken += 1
        answer = _answer(lambda rows=rows: trained.update(maker.asked(rows)))
        if answer is None:
            accepted = True
            found.clear()
            break
        found.append(answer)
    if not taken:
        raise EvidenceError("the trainer cannot be made here, whatever it is given")
    package = release(maker.cls.__module__.partition(".")[0])
    first = found[0] if found else ("", "", "")
    if len(found) < taken or any(one != first for one in found) or not _is_an_answer(first):
        return AskedTrainer(package, taken, trained=trained), accepted
    return AskedTrainer(package, taken, *first), accepted


def takes_some_rows(maker: Maker) -> bool:
    """Whether the class takes one of the kinds of rows, with arguments of its own."""
    ranking = maker.with_classes(1)
    return any(
        _answer(lambda rows=rows: one.plain(rows)) is None  # noqa: B023
        for rows in _datasets(maker.cls)
        for one in ((maker,) if ranking is maker else (maker, ranking))
    )


def _trained_dtypes(model: Any) -> dict[str, int]:
    """Parameters that are trained, by dtype."""
    counts: collections.Counter[str] = collections.Counter()
    for parameter in model.parameters():
        if parameter.requires_grad:
            counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return dict(counts)


def _asked_with_rows(
    maker: Maker, source: Mapping[str, Any], without: AskedTrainer
) -> AskedTrainer:
    """The same with the rows of the program and the tokenizer of its model. ``without``: what was
    found with rows that the trainer takes."""
    if maker.recipe.get("chat_template_path") is not None or takes_more_than_text(maker.model):
        return without
    try:
        tokenizer = load_tokenizer(source)
    except EvidenceError:
        return without  # the rows cannot be tried; the rest was
    for name, text in maker.trainer["tokenizer"].items():
        setattr(tokenizer, name, text)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        return without
    kind = importlib.import_module("datasets").Dataset
    own = dataclasses.replace(maker, tokenizer=tokenizer)
    answer = _answer(lambda: own.asked(kind.from_list(maker.trainer["rows"])))
    if answer is None or NOT_THEIRS.search(answer[1]) is not None:
        return without
    message = f"{answer[1]}" if answer[0] != "KeyError" else f"no column {answer[1]}"
    return dataclasses.replace(
        without, kind=answer[0], message=message, raised_at=answer[2], of_rows=True
    )


def _answer(make: Any) -> tuple[str, str, str] | None:
    """What is raised, with its message and where; ``None`` for nothing.

    Raises:
        EvidenceError: nothing can be said.
    """
    try:
        make()
    except EvidenceError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        kind = type(error).__name__
        message = " ".join(text_of(error).split())[:400]
        return kind, message, _place(error)
    return None


def _is_an_answer(answer: tuple[str, str, str]) -> bool:
    """Whether the trainer's own code refuses, and for nothing that this machine lacks."""
    kind, message, place = answer
    refuses = kind in ("ValueError", "TypeError", "NotImplementedError", "RuntimeError")
    return refuses and bool(message and place) and NOT_THEIRS.search(message) is None


def _place(error: BaseException) -> str:
    """File and line of the trainer's module that raised; empty where it is another one."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    parts = Path(last.filename).parts
    package = next((name for name in ("trl", "transformers") if name in parts), None)
    if package is None or "trainer" not in last.filename:
        return ""
    if not (last.line or "").startswith("raise"):
        return ""  # it stumbles over something, and does not say that it refuses it
    return f"{'/'.join(parts[parts.index(package) :])}:{last.lineno}"


# --- what it is made with ---------------------------------------------------------------------


def class_named(name: str) -> Any:
    try:
        return named(name)
    except Exception as error:
        raise EvidenceError(f"{name} cannot be imported: {type(error).__name__}") from error


def taken(cls: Any) -> set[str]:
    """The arguments of a trainer; where it hands all of them on, those of its base."""
    found: set[str] = set()
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner.__init__).parameters.values()
        found.update(one.name for one in parameters)
        if not any(one.kind is one.VAR_POSITIONAL for one in parameters):
            break
    return found


def own_arguments_class(cls: Any) -> str:
    """The dotted name of the arguments class that goes with a trainer's class, by its name."""
    package, own = cls.__module__.partition(".")[0], cls.__name__.removesuffix("Trainer")
    if package != "trl":
        return f"{package}.{own}TrainingArguments"
    beside = f"{cls.__module__.rpartition('.')[0]}.{own}Config"  # of an experimental trainer
    return beside if class_of(beside) is not None else f"trl.{own}Config"


def new_arguments(name: str, values: Mapping[str, Any], folder: str) -> Any:
    cls = class_named(name)
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    here: dict[str, Any] = {"output_dir": folder, "report_to": "none", "disable_tqdm": True}
    here["use_cpu" if "use_cpu" in fields else "no_cuda"] = True
    here.update({name: False for name in ("bf16", "fp16") if name in fields})
    return cls(**{**values, **{name: value for name, value in here.items() if name in fields}})


def _datasets(cls: Any) -> Iterator[Any]:
    """Rows of each kind; as TRL takes them where the trainer is TRL's."""
    if not is_of_trl(cls):
        yield [dict(_ROWS["tokens"])] * _ROWS_EACH
        return
    kind = importlib.import_module("datasets").Dataset
    for row in _ROWS.values():
        rows = [dict(row) for _ in range(_ROWS_EACH)]
        if "label" in row:
            rows[0]["label"] = False  # of both kinds
        yield kind.from_list(rows)


def is_of_trl(cls: Any) -> bool:
    return bool(cls.__module__.partition(".")[0] == "trl")


def _processor(tokenizer: Any) -> Any:
    """A processor around a tokenizer: TRL asks for one where a model takes more than text. It is
    for the constructor of the trainer alone, which runs no rows of images through it."""
    from transformers import ProcessorMixin

    class Processor(ProcessorMixin):  # type: ignore[misc]
        attributes = ("tokenizer",)
        tokenizer_class = "PreTrainedTokenizerFast"

        def __init__(self, tokenizer: Any) -> None:
            super().__init__(tokenizer)

    made = Processor(tokenizer)
    made.chat_template = tokenizer.chat_template
    return made


def _tokenizer(more: Sequence[str]) -> Any:
    """A tokenizer with as few tokens as the tiny model has, and with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(("<unk>", "<s>", "</s>", "<pad>", *more, "one", "two", "three"))
    inner = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    )  # fmt: skip
    made.chat_template = _TEMPLATE
    return made


def _a_linear(model: Any) -> str:
    """The path of a linear layer that is not the output head."""
    import torch

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for path, module in model.named_modules():
        plain = type(module) is torch.nn.Linear or type(module).__name__ == "Conv1D"
        if plain and module is not head:
            return str(path)
    raise EvidenceError("the model has no linear layer")


def takes_more_than_text(model: Any) -> bool:
    config = getattr(model, "config", None)
    return any(hasattr(config, name) for name in ("vision_config", "audio_config")) or (
        getattr(model, "main_input_name", "input_ids") != "input_ids"
    )


def no_reward(completions: Sequence[Any], **more: Any) -> list[float]:
    return [0.0] * len(completions)


def _function(*args: Any, compute_result: bool = False, **more: Any) -> Any:
    """Stands for a function of the script, with the one argument that a Trainer looks for."""
    return "one two three"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield
