"""The trainer of a program, as far as it can be made again apart from it: its class, its arguments,
and which other things it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_doctor.recipe.program.evaluation import is_of_a_library
from lora_doctor.recipe.program.made_arguments import MadeArguments, arguments_of
from lora_doctor.recipe.program.objects import (
    is_none,
    is_saved_adapter,
    is_wrap,
    loader_of,
    makers,
    text_of,
    top,
    uses_unsloth,
)
from lora_doctor.recipe.program.pins import pinned_otherwise
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.program.written_rows import written_rows
from lora_doctor.static.installed.signatures import signature_of
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Known, Thing, same

#: What decides nothing about whether the trainer accepts the rest.
_ASIDE = ("callbacks", "optimizers", "preprocess_logits_for_metrics", "train_dataset",
          "eval_dataset", "processing_class", "tokenizer", "reward_processing_classes")  # fmt: skip
#: What can be replaced by something of its kind.
_REPLACED = ("ref_model", "data_collator", "compute_metrics", "compute_loss_func",
             "formatting_func", "reward_funcs", "quantization_config")  # fmt: skip

#: What changes a tokenizer.
_CHANGES = ("add_tokens", "add_special_tokens", "set_chat_template")


@dataclass(frozen=True)
class MadeTrainer:
    """A trainer that can be made again."""

    #: Dotted name of its class.
    name: str
    place: Place
    #: Its arguments; ``None`` where it is given none.
    arguments: MadeArguments | None
    #: Names of what else it is given.
    given: tuple[str, ...]
    #: Whether its model has adapters already, it is a name, or it is its own reference as well.
    adapted: bool = False
    by_name: bool = False
    own_reference: bool = False
    #: Some rows of its training set, and what the program sets on the model's own tokenizer;
    #: ``None`` where either is not known.
    rows: list[dict[str, Any]] | None = None
    tokenizer: dict[str, str] | None = None
    #: ``num_labels`` of the model, where the program says it.
    classes: int | None = None

    @property
    def columns(self) -> str:
        """The columns of its rows, as far as they are known."""
        return ", ".join(self.rows[0]) if self.rows else ""

    def to_json(self) -> dict[str, Any]:
        """For the child process."""
        made = self.arguments
        return {
            "name": self.name,
            "arguments": {"name": made.name, "values": made.values} if made else None,
            "given": list(self.given),
            "adapted": self.adapted,
            "by_name": self.by_name,
            "own_reference": self.own_reference,
            "rows": self.rows if self.tokenizer is not None else None,
            "tokenizer": self.tokenizer,
            "classes": self.classes,
        }


def made_trainer(setup: Setup) -> MadeTrainer | None:
    """The trainer that trains; ``None`` where the text does not say all that decides about it, or
    another release than the installed one is asked for."""
    call = setup.roles.trainer
    if call is None or not _is_plain(setup, call):
        return None
    place = _place_of_args(call)
    if len(call.positional) > (1 if place is None else 2):  # the model, and its arguments
        return None
    args = call.value("args", place)
    made = None if is_none(args) else arguments_of(args)
    if made is None and not is_none(args):
        return None
    given = [name for name in call.keywords if not is_none(call.value(name))]
    others = [name for name in given if name not in ("model", "args", "peft_config", *_ASIDE)]
    if not set(others) <= set(_REPLACED):
        return None
    model = call.value("model", 0)
    first = next(makers(model), None)
    reference = call.value("ref_model")
    return MadeTrainer(
        call.name,
        call.place,
        made,
        tuple(others),
        adapted=first is not None and (is_wrap(first) or is_saved_adapter(first)),
        by_name=isinstance(model, Known),
        own_reference=reference is not None and reference is model,
        rows=_rows(setup, call),
        tokenizer=_tokenizer(setup, call),
        classes=_classes(call),
    )


def _place_of_args(call: Call) -> int | None:
    """1, where the class takes its arguments behind the model; ``None`` where it does not."""
    signature = signature_of(call.name)
    if signature is None or signature.positional is None:
        return 1 if top(call.name) == "transformers" else None
    return 1 if signature.positional[1:2] == ("args",) else None


def _classes(call: Call) -> int | None:
    loaded = loader_of(call.value("model", 0))
    found = loaded.value("num_labels") if loaded is not None else None
    known = isinstance(found, Known) and isinstance(found.value, int)
    return found.value if known and isinstance(found, Known) else None


def _rows(setup: Setup, call: Call) -> list[dict[str, Any]] | None:
    """Some rows, where a trainer of TRL itself makes samples of them."""
    if top(call.name) != "trl" or not is_none(call.value("formatting_func")):
        return None
    return written_rows(call.value("train_dataset"), setup.program.path.parent)


def _tokenizer(setup: Setup, call: Call) -> dict[str, str] | None:
    """What the program sets on the tokenizer of its model; ``None`` where the trainer gets another
    one, or one with more tokens or another template."""
    value = call.value("processing_class") or call.value("tokenizer")
    if is_none(value):
        return {}
    model = call.value("model", 0)
    loaded = loader_of(model)
    source = model if isinstance(model, Known) else (
        loaded.value("pretrained_model_name_or_path", 0) if loaded is not None else None
    )  # fmt: skip
    if not isinstance(value, Thing) or value.call.method != "from_pretrained" or source is None:
        return None
    named = value.call.value("pretrained_model_name_or_path", 0)
    if named is None or not same(named, source) or len(value.call.keywords) > 1:
        return None
    if any(one.receiver is value and one.method in _CHANGES for one in setup.program.calls):
        return None
    unknown = [name for name, one in value.attributes.items() if text_of(one) is None]
    if set(unknown) - {"pad_token", "pad_token_id"}:
        return None
    return {name: text for name, one in value.attributes.items() if (text := text_of(one))}


def _is_plain(setup: Setup, call: Call) -> bool:
    """Whether it is a library's own trainer, of the installed release, with arguments that the text
    names, on a model that was loaded as it is."""
    if not is_of_a_library(call) or not call.certain or call.open is not None:
        return False
    if uses_unsloth(setup.program):
        return False  # it patches the classes
    pinned = pinned_otherwise(setup.program)
    if pinned & {"transformers", "trl", "peft"}:
        return False
    model = call.value("model", 0)
    return isinstance(model, Known) or loader_of(model) is not None
