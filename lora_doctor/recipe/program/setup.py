"""What a script or notebook says of its training run: a recipe, and where each key is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_doctor.recipe.program.objects import Roles
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.static.place import Place
from lora_doctor.static.program.program import Program
from lora_doctor.static.program.values import Argument, Call, Value

#: Suffixes of files that hold a program.
SUFFIXES = (".py", ".ipynb")


@dataclass(frozen=True)
class Setting:
    """A key of the recipe as a program has it."""

    value: Value
    #: The argument that gives it; ``None`` for an attribute that is set, or for a call whose being
    #: made is what sets the key.
    argument: Argument | None
    call: Call | None


@dataclass(frozen=True)
class NamedAdapter:
    """A saved adapter that a program loads onto its model."""

    #: Its folder or hub id, as the program names it.
    name: str
    place: Place
    #: Whether the program trains it further.
    trained: bool


@dataclass(frozen=True, eq=False)
class Setup:
    """What a program says of its training run."""

    #: What was read, with every call.
    program: Program
    #: Who loads, adapts and trains.
    roles: Roles
    #: The recipe.
    recipe: Recipe
    #: Key of the recipe to its value in the program.
    settings: dict[str, Setting]
    #: Part of a recipe to the call that takes its keys.
    parts: dict[str, Call]
    #: The model, as the program names it; ``None`` where that is not known, or none is loaded.
    model: str | None
    #: Where it is named.
    model_place: Place | None
    #: Revision on the hub.
    revision: str | None = None
    #: Whether the program trusts the model's code.
    trust_remote_code: bool = False
    #: What has to be said before the model can be looked at, each with its name and line.
    asked: tuple[tuple[str, str], ...] = ()
    #: The saved adapter that it loads, where it puts no new one on.
    saved_adapter: NamedAdapter | None = None
    #: A quantization that it loads the model with and that is not bitsandbytes'; empty for none.
    other_quantization: str = ""
    #: Whether it puts a new one on by the config of a saved one.
    config_of_file: bool = False

    @property
    def has_recipe(self) -> bool:
        """Whether the program says which adapter is trained."""
        return "adapter" in self.parts or self.config_of_file

    def open_questions(self, given: frozenset[str]) -> list[str]:
        """What remains to be asked when these keys are given."""
        return [text for key, text in self.asked if key not in given]


def is_program(path: Path) -> bool:
    """Whether a file is a script or notebook, by its name."""
    return path.suffix.lower() in SUFFIXES
