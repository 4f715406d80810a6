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
    top,
)
from lora_doctor.recipe.program.pins import unmet
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Known

#: What decides nothing about whether the trainer accepts the rest.
_ASIDE = ("callbacks", "optimizers", "preprocess_logits_for_metrics", "train_dataset",
          "eval_dataset", "processing_class", "tokenizer", "reward_processing_classes")  # fmt: skip
#: What can be replaced by something of its kind.
_REPLACED = ("ref_model", "data_collator", "compute_metrics", "compute_loss_func",
             "formatting_func", "reward_funcs", "quantization_config")  # fmt: skip


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
        }


def made_trainer(setup: Setup) -> MadeTrainer | None:
    """The trainer that trains; ``None`` where the text does not say all that decides about it, or
    another release than the installed one is asked for."""
    call = setup.roles.trainer
    if call is None or not _is_plain(setup, call):
        return None
    named = 2 if top(call.name) == "transformers" else 1  # the model, and there its arguments
    if len(call.positional) > named:
        return None
    args = call.value("args", named - 1 or None)
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
    )


def _is_plain(setup: Setup, call: Call) -> bool:
    """Whether it is a library's own trainer, of the installed release, with arguments that the text
    names, on a model that was loaded as it is."""
    if not is_of_a_library(call) or not call.certain or call.open is not None:
        return False
    if any(top(one.name) == "unsloth" for one in setup.program.calls):
        return False  # it patches the classes
    pinned = {pin.package.replace("-", "_") for pin, _ in unmet(setup.program)}
    if pinned & {"transformers", "trl", "peft"}:
        return False
    model = call.value("model", 0)
    return isinstance(model, Known) or loader_of(model) is not None
