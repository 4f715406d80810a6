"""DeepSpeed's settings beside the Trainer's arguments, which transformers compares."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_doctor.recipe.program.devices import deepspeed_of
from lora_doctor.recipe.program.launch import Launch, is_certain, part_of
from lora_doctor.recipe.program.objects import Settings, settings_of
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place

#: DeepSpeed's value to the Trainer's, as transformers' ``HfTrainerDeepSpeedConfig`` compares them.
_SAME = {
    ("train_micro_batch_size_per_gpu",): "per_device_train_batch_size",
    ("gradient_accumulation_steps",): "gradient_accumulation_steps",
    ("optimizer", "params", "lr"): "learning_rate",
    ("fp16", "enabled"): "fp16",
    ("bf16", "enabled"): "bf16",
}
#: What ``TrainingArguments`` have in every release where nothing is said.
_DEFAULTS = {"gradient_accumulation_steps": 1, "fp16": False, "bf16": False}
_ARGUMENTS = ("TrainingArguments", "Seq2SeqTrainingArguments")
_OPTIONS = re.compile(r"\s--(?:mixed|gradient)[_-]\w")


@dataclass(frozen=True)
class Contradiction:
    """One value that DeepSpeed and the Trainer are told differently."""

    #: In DeepSpeed's config, with dots.
    name: str
    #: What stands there.
    value: object
    #: The Trainer's argument.
    key: str
    #: What that is.
    ours: object


@dataclass(frozen=True)
class Contradictions:
    """What a program's Trainer and its DeepSpeed config are told differently."""

    #: Each of them, at least one.
    found: tuple[Contradiction, ...]
    #: What has DeepSpeed's values: a file, or an argument of the Trainer.
    config: str
    #: Where that is asked for.
    place: Place
    #: Whether it is certain to count: no comment, no file that only lies there, and the only way
    #: to start.
    certain: bool = True


def contradictions(
    config: Mapping[str, Any], ours: Callable[[str], object]
) -> tuple[Contradiction, ...]:
    """What DeepSpeed's config and the Trainer are told differently.

    Args:
        config: DeepSpeed's.
        ours: the value of an argument of the Trainer's; ``None`` where it is not known.
    """

    def compared() -> Iterator[Contradiction]:
        for path, key in _SAME.items():
            value: object = config
            for name in path:
                value = value.get(name) if isinstance(value, Mapping) else None
            mine = ours(key)
            if value not in (None, "auto") and mine is not None and value != mine:
                yield Contradiction(".".join(path), value, key, mine)

    return tuple(compared())


def accumulation_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """DeepSpeed's config that accelerate makes of its own one, as far as it has a number of
    micro-batches; it takes one that is written as text as well."""
    steps = str(part_of(config, "deepspeed_config").get("gradient_accumulation_steps", ""))
    return {"gradient_accumulation_steps": int(steps)} if steps.isdigit() else {}


def program_contradictions(setup: Setup, started: Sequence[Launch]) -> Contradictions | None:
    """Of a program that a Trainer of transformers trains; ``None`` where there is no contradiction,
    or it is not known."""
    trainer, arguments = setup.roles.trainer, settings_of(setup.roles.training)
    if trainer is None or arguments is None or arguments.open is not None or trainer.heir:
        return None

    def ours(key: str) -> object:
        return _argument(setup, arguments, key)

    given = arguments.arguments.get("deepspeed")
    if given is not None:
        found = contradictions(deepspeed_of(setup, given.value), ours)
        code = " ".join(given.whole.text.split())[:100]
        return Contradictions(found, code, given.whole.place) if found else None
    if "deepspeed" in arguments.names():
        return None
    for launch in started:
        found = contradictions(_of_launch(launch, ours), ours)
        if found:
            certain = is_certain(launch, started, lambda one: bool(one.deepspeed))
            return Contradictions(found, launch.code, launch.place, certain)
    return None


def _of_launch(launch: Launch, ours: Callable[[str], object]) -> Mapping[str, Any]:
    """DeepSpeed's config by what starts the program; options of the command may change it."""
    if not launch.deepspeed or _OPTIONS.search(launch.code):
        return {}
    if "deepspeed_config_file" in launch.deepspeed:
        return launch.deepspeed_file
    made = dict(accumulation_of(launch.config))
    dtype = str(launch.config.get("mixed_precision", "no")).lower()
    # An argument of the Trainer counts more; without one there is accelerate's dtype.
    if dtype in ("bf16", "fp16") and ours("bf16") is False and ours("fp16") is False:
        made[dtype] = {"enabled": True}
    return made


def _argument(setup: Setup, arguments: Settings, key: str) -> object:
    """An argument of the Trainer's; ``None`` where it is not known."""
    if key in arguments.names():
        return setup.recipe.get(key)
    name = arguments.call.name if arguments.call is not None else ""
    if name.partition(".")[0] == "transformers" and name.rpartition(".")[2] in _ARGUMENTS:
        return _DEFAULTS.get(key)
    return None
