"""A MODEL that is a file of a training framework: it names the model and says how it is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.errors import InputError
from lora_doctor.recipe.recipe import Recipe

if TYPE_CHECKING:
    from lora_doctor.recipe.files.started_script import StartedScript


def set_up_file(model: Any) -> Path | None:
    """The file of a set-up that MODEL is; ``None`` where it is anything else."""
    if not isinstance(model, (str, Path)) or "\0" in str(model) or not str(model).strip():
        return None
    path = Path(model).expanduser()
    try:
        is_file = path.is_file()
    except OSError:  # a name longer than any file has
        return None
    if not is_file:
        return None
    from lora_doctor.recipe.program.setup import is_program

    return None if is_program(path) else path


def script_of(path: Path) -> StartedScript | None:
    """The training script that a shell file starts; ``None`` where it starts none, or a command of
    a framework.

    Raises:
        InputError: it starts several trainings.
    """
    from lora_doctor.recipe.files.read_write import read_recipe
    from lora_doctor.recipe.files.shell_syntax import SHELLS
    from lora_doctor.recipe.files.started_script import sets_up, started_script

    if path.suffix.lower() not in SHELLS:
        return None
    found = started_script(path)
    if found is None or sets_up(found):
        return found
    try:
        return None if read_recipe(path).set_up is not None else found
    except InputError:
        return found


def edited_file(model: Any, format: str | None) -> Path | None:
    """The file of a set-up in which a fix is written: of a shell file that starts a script that
    script; ``None`` where MODEL is no set-up.

    Raises:
        InputError: as :func:`script_of`.
    """
    file = set_up_file(model)
    if file is None or format is not None:
        return file
    started = script_of(file)
    return file if started is None else started.script


def of_set_up(path: Path, recipe: Recipe, format: str | None) -> tuple[str, str | None, Recipe]:
    """The model that the set-up names, its revision, and its recipe, over which the values of
    ``recipe`` win.

    Raises:
        InputError: the file is no set-up, names no model, or a recipe file is given as well.
    """
    if recipe.file is not None:
        raise InputError(f"MODEL {path}: is a set-up with a recipe of its own; leave out --recipe")
    from lora_doctor.recipe.files.format import framework_named
    from lora_doctor.recipe.files.read_write import read_recipe

    read = read_recipe(path, format)
    if read.set_up is None:
        raise InputError(
            f"MODEL {path}: says how to train and not what; give it with --recipe {path}, and "
            "the model as MODEL"
        )
    framework = framework_named(read.set_up.format)
    model = read.set_up.entries.get(framework.model)
    if not isinstance(model, str) or not model.strip():
        saved = framework.saved_model(read.set_up.entries, (Path(), path.parent))
        model = saved[1] if saved is not None else model
    if not isinstance(model, str) or not model.strip():
        raise InputError(
            f"{path}: a set-up of {read.set_up.format} names its model with {framework.model}, "
            "which is missing here"
        )
    revision = read.set_up.entries.get(framework.revision)
    merged = replace(
        read,
        values={**read.values, **recipe.values},
        origins={**read.origins, **recipe.origins},
    )
    return model, str(revision) if revision else None, merged
