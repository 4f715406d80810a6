"""The checkpoint from which a run is to be resumed, and what it lacks for that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_doctor.recipe.program.caught import is_caught
from lora_doctor.recipe.program.objects import is_trainer, text_of
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.named_file import named_file, named_folder
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Call, Class, Thing

_ARGUMENT = "resume_from_checkpoint"
#: What the Trainer reads first, and ``trainer.save_model`` does not write.
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Resumed:
    """A call of ``trainer.train`` that names a checkpoint."""

    place: Place
    path: str


def resumed_from(setup: Setup) -> Iterator[Resumed]:
    """The checkpoints that a program's trainers are told to resume from."""
    for call in setup.program.calls:
        trainer = call.receiver.call if isinstance(call.receiver, Thing) else None
        if call.method != "train" or trainer is None or not _is_of_library(trainer):
            continue
        if not call.certain or is_caught(call, FileNotFoundError):
            continue
        argument = call.argument(_ARGUMENT, 0)
        path = text_of(argument.value) if argument is not None else None
        if argument is not None and path is not None:
            yield Resumed(argument.span.place, path)


def _is_of_library(trainer: Call) -> bool:
    """Whether ``train`` is that of the library: a class of the user's may have one of its own,
    which does what it likes with the path."""

    def has_own(made: object) -> bool:
        return isinstance(made, Class) and ("train" in made.names or any(map(has_own, made.bases)))

    return is_trainer(trainer) and not has_own(trainer.heir)


def without_state(path: str, folders: Iterable[Path]) -> Path | None:
    """The folder of a checkpoint, where it is here, can be looked into and has no state of a
    Trainer; relative to the first of these folders that has it."""
    found = named_folder(path, folders)
    if found is None or not os.access(found, os.R_OK | os.X_OK):
        return None
    return None if named_file(TRAINER_STATE, (found,)) else found
