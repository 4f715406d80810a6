"""A training script or notebook as MODEL: the model and the recipe that it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_doctor.errors import InputError
from lora_doctor.recipe.program.read_setup import read_setup, setup_of
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.static.model_source import ModelSource, parse_model
from lora_doctor.static.named_file import named_folder
from lora_doctor.static.program.started import Start


def of_program(
    source: ModelSource,
    given: Recipe,
    arguments: tuple[str, ...],
    *,
    start: Start | None = None,
    trust_remote_code: bool,
) -> tuple[ModelSource, Recipe]:
    """The model that a program trains, and its recipe with what was given beside it on top.
    ``start``: the command in a shell file that starts it with these ``arguments``.

    Where the program does not say all of it, the source stays the program, which is only read, and
    :func:`why_only_read` says what is missing.

    Raises:
        InputError: the program cannot be read, or holds a value that its key cannot have.
    """
    if given.file is not None:
        return source, given
    path = Path(source.name)
    setup = read_setup(path, None, arguments, start)
    recipe = setup.recipe.override(given.values, "option")
    sets_up = setup.has_recipe or setup.saved_adapter is not None
    if setup.model is None or not sets_up or missing(setup, recipe):
        return source, recipe
    try:
        model = _model(setup, path, trust_remote_code)
    except InputError as error:
        return only_read(source, recipe, f"{setup.model_place}: {error}")
    return replace(model, script=source.name), recipe


def only_read(source: ModelSource, recipe: Recipe, why: str) -> tuple[ModelSource, Recipe]:
    """The program itself as the source, with the reason why its model cannot be looked at."""
    assert recipe.written is not None
    written = replace(recipe.written, out_of_reach=why)
    name = source.script or source.name
    return ModelSource("script", name), replace(recipe, written=written)


def missing(setup: Setup, recipe: Recipe) -> list[str]:
    """What has to be said that neither the program nor the user has."""
    given = frozenset(key for key, origin in recipe.origins.items() if origin == "option")
    return setup.open_questions(given)


def why_only_read(source: ModelSource, recipe: Recipe) -> str:
    """Why a program that is MODEL is not looked at more deeply; empty where it names no model."""
    setup = setup_of(recipe)
    if setup is None:
        return ""
    name = Path(source.name).name
    asked = missing(setup, recipe)
    if asked:
        words = f"lora-doctor check {source.name} -- --NAME VALUE"
        way = f" (an argument of the script: {words})" if "pass `" in "".join(asked) else ""
        return f"{name} does not say: {'; '.join(asked)}{way}"
    if setup.model is None and setup.has_recipe:
        return (
            f"{name} does not say which model is loaded; give it: lora-doctor check MODEL "
            f"--recipe {source.name}"
        )
    why = recipe.written.out_of_reach if recipe.written is not None else ""
    if not why or not setup.has_recipe:
        return why
    return f"{why}; or name a copy of the model: lora-doctor check MODEL --recipe {source.name}"


def _model(setup: Setup, path: Path, trust_remote_code: bool) -> ModelSource:
    """The source that the program names: as from here, else as from its own folder."""
    assert setup.model is not None
    text = setup.model
    folder = named_folder(text, (Path(), path.parent))
    if folder is not None and not Path(text).exists():
        text = str(folder)
    # The program's own trust is no leave to run the code here.
    found = parse_model(text, revision=setup.revision, trust_remote_code=trust_remote_code)
    if found.kind not in ("hub", "folder"):
        raise InputError(f"MODEL {text!r}: is not a model that from_pretrained can load")
    return found
