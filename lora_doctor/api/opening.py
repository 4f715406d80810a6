"""A case out of what a caller gave: the model found, the recipe read, files of a hub fetched, and a
child process behind it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lora_doctor.api.children import child_for
from lora_doctor.api.options import DEFAULTS, CaseOptions, CheckOptions
from lora_doctor.engine.case import Case
from lora_doctor.engine.limits import Limits
from lora_doctor.engine.named_adapter import only_uses, with_named_adapter
from lora_doctor.engine.saved_adapter import Finder, onto_base
from lora_doctor.engine.set_up import set_up_file
from lora_doctor.engine.settings import Data, Settings
from lora_doctor.errors import InputError
from lora_doctor.limits import MOST_DATA_ROWS
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.files.prescription import Prescription
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.budget import read_budgets
from lora_doctor.results.depth import DEPTHS
from lora_doctor.results.samples import Samples
from lora_doctor.static.adapter_files import AdapterFiles
from lora_doctor.static.model_source import ModelSource, parse_model

if TYPE_CHECKING:
    from lora_doctor.recipe.files.started_script import StartedScript

#: The devices of the command line, and one of several GPUs.
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@contextlib.contextmanager
def open_case(
    model: Any, recipe: Any, options: CaseOptions, *, eager: bool = True
) -> Iterator[Case]:
    """A case with a child process behind it, closed at the end unless it was handed in. Files of
    a hub id are fetched. ``eager``: the child starts at once; without, with its first task.

    Raises:
        InputError: as :func:`check`.
    """
    given: CheckOptions = {**DEFAULTS, **options}
    depth, limits = given["depth"], given["limits"] or Limits()
    if depth not in DEPTHS:
        raise InputError(f"depth {depth!r}: expected one of {', '.join(DEPTHS)}")
    _check_kinds(given)
    _check_run(given)
    if isinstance(model, str) and not model.strip():
        raise InputError("MODEL is empty; give a hub id, a folder, arch:NAME or module:factory")
    checked_recipe = _as_recipe(recipe, given["format"])
    model, started = _started(model, given)
    model, checked_recipe, revision = _of_set_up(model, checked_recipe, given)
    progress = given["progress"] or (lambda text: None)
    finder = Finder(limits.hub_seconds, progress, given["trust_remote_code"])
    model, adapter = finder.find(model, given["adapter"])
    source = parse_model(model, revision=revision, trust_remote_code=given["trust_remote_code"])
    source, checked_recipe = _of_script(source, checked_recipe, given, started)
    trains = True
    if adapter is not None:
        source, checked_recipe = onto_base(source, checked_recipe, adapter)
    elif given["prescription"] is None:
        source, checked_recipe, adapter = with_named_adapter(source, checked_recipe, finder)
        trains = adapter is None or not only_uses(source, checked_recipe)
    patches: tuple[Patch, ...] = ()
    if given["prescription"] is not None:
        patches, prescribed = _prescribed(given["prescription"], source)
        checked_recipe = checked_recipe if recipe is not None else prescribed
    if depth == "full" and source.kind in ("arch", "factory"):
        raise InputError(f"MODEL {source}: has no weights to load; --depth tiny runs without any")
    _check_optimizer(source, given)
    settings = replace(_settings(given, limits, adapter), trains=trains)
    with contextlib.ExitStack() as stack:
        child = given["worker"] or stack.enter_context(child_for(source, settings))
        if eager and settings.depth != "static" and source.kind not in ("module", "script"):
            child.start()  # imports run while the files are read
        if source.kind == "hub":
            source, checked_recipe, settings = _fetched(source, checked_recipe, settings, finder)
        case = Case(source, checked_recipe, settings, child, patches=patches, progress=progress)
        stack.callback(case.close)
        yield case


def _as_recipe(given: Any, format: str | None = None) -> Recipe:
    """A recipe out of what a caller gave. The readers of files are imported where one is needed:
    the command line gives a recipe that is read."""
    if isinstance(given, Recipe):
        return given
    from lora_doctor.recipe.files.read_write import as_recipe

    return as_recipe(given, format)


#: Options that only one kind of value can be, and what that is called.
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "limits": ((Limits,), "a lora_doctor.Limits"),
    "revision": ((str,), "a branch, tag or commit"),
    "adapter": ((str, os.PathLike), "a folder or a hub id"),
    "data": ((str, os.PathLike), "a file"),
    "eval_data": ((str, os.PathLike), "a file"),
    "prescription": ((str, os.PathLike, Prescription), "a file or a lora_doctor.Prescription"),
}


def _check_kinds(given: CheckOptions) -> None:
    """Raises InputError for a value of another kind than its option has."""
    for name, (kinds, words) in _KINDS.items():
        value = given.get(name)
        if value is not None and not isinstance(value, kinds):
            raise InputError(f"{name}: is {words}, not {type(value).__name__}")
    if given["progress"] is not None and not callable(given["progress"]):
        raise InputError("progress: expected a function that takes a string")


def _batches(given: Any) -> tuple[Mapping[str, Any], ...] | None:
    """The forward arguments of each batch; one batch may be given alone.

    Raises:
        InputError: they are none.
    """
    if given is None:
        return None
    several = [given] if isinstance(given, Mapping) else given
    batches = tuple(several) if isinstance(several, Iterable) else (several,)
    if not all(isinstance(batch, Mapping) for batch in batches):
        raise InputError(
            "batches: expected a list of mappings, each with the arguments of one forward"
        )
    return batches or None


def _check_run(given: CaseOptions) -> None:
    """Raises InputError for a device or a number of steps that there cannot be, at every depth."""
    device, steps = given["device"], given["steps"]
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise InputError(f"device {device!r}: expected auto, cpu, cuda or mps")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps {steps!r}: expected an integer of at least 1")


def _settings(given: CheckOptions, limits: Limits, adapter: AdapterFiles | None) -> Settings:
    return Settings(
        depth=given["depth"],
        device=given["device"],
        steps=given["steps"],
        limits=limits,
        batches=_batches(given["batches"]),
        optimizer=given["optimizer"],
        scheduler=given["scheduler"],
        planned_steps=given["planned_steps"],
        memory=given["memory"],
        adapter=adapter,
        data=_data(given),
        budgets=read_budgets(given["budgets"], "budgets"),
    )


def _data(given: CheckOptions) -> Data | None:
    """The data that are to be looked at.

    Raises:
        InputError: a file cannot be used, or a number or word is none of those there are.
    """
    rows, samples = given["rows"], given["samples"]
    if type(rows) is not int or not 1 <= rows <= MOST_DATA_ROWS:
        raise InputError(f"rows {rows!r}: expected an integer from 1 to {MOST_DATA_ROWS:,}")
    if samples not in get_args(Samples):
        raise InputError(f"samples {samples!r}: expected one of {', '.join(get_args(Samples))}")
    files = [Path(one).expanduser() if one is not None else None
             for one in (given["data"], given["eval_data"])]  # fmt: skip
    if any(files):
        from lora_doctor.supervision.data_file import check_file

        for file in filter(None, files):
            check_file(file)
    training, evaluation = files
    if training is None:
        if evaluation is not None:
            raise InputError("eval_data: is compared with the training data; give data as well")
        return None
    return Data(training.resolve(), evaluation and evaluation.resolve(), rows, samples)


def _prescribed(
    given: str | os.PathLike[str] | Prescription, source: ModelSource
) -> tuple[tuple[Patch, ...], Recipe]:
    """The patches and the recipe of a prescription."""
    from lora_doctor.prescription.apply import checked_prescription

    if source.kind == "module":
        raise InputError(
            "prescription: this model is already loaded; call lora_doctor.apply before loading it"
        )
    held = given if isinstance(given, Prescription) else checked_prescription(Path(given))
    return held.patches, _as_recipe(held.recipe)


def _of_set_up(model: Any, recipe: Recipe, given: CheckOptions) -> tuple[Any, Recipe, str | None]:
    """The model, recipe and revision that the file of a training framework says; any other MODEL
    as it is."""
    file = set_up_file(model)
    if file is None:
        return model, recipe, given["revision"]
    from lora_doctor.engine.set_up import of_set_up

    model, named, recipe = of_set_up(file, recipe, given["format"])
    return model, recipe, given["revision"] or named


def _started(model: Any, given: CheckOptions) -> tuple[Any, StartedScript | None]:
    """The script that MODEL starts, where that is a shell file, and how; any other MODEL as it is.
    ``format`` says that it is a framework's."""
    file = set_up_file(model) if given["format"] is None else None
    if file is None:
        return model, None
    from lora_doctor.engine.set_up import script_of

    found = script_of(file)
    return (model, None) if found is None else (str(found.script), found)


def _of_script(
    source: ModelSource, recipe: Recipe, given: CheckOptions, started: StartedScript | None
) -> tuple[ModelSource, Recipe]:
    """What a training script says of its model and recipe; any other source as it is."""
    words = tuple(given["script_arguments"])
    if source.kind == "script":
        from lora_doctor.engine.program import of_program
        from lora_doctor.recipe.files.started_script import only_start_of

        if started is None and not words and recipe.file is None:
            started = only_start_of(Path(source.name))
        arguments = (*(started.arguments if started is not None else ()), *words)
        start = started.start if started is not None else None
        trust = given["trust_remote_code"]
        return of_program(source, recipe, arguments, start=start, trust_remote_code=trust)
    if words:
        raise InputError(
            f"{' '.join(words)!r}: only a training script has arguments, and MODEL "
            f"{str(source)!r} is none"
        )
    return source, recipe


def _fetched(
    source: ModelSource, recipe: Recipe, settings: Settings, finder: Finder
) -> tuple[ModelSource, Recipe, Settings]:
    """The source with its small files here; one that is an adapter becomes its base model with that
    adapter on it. A script or a framework's file whose model cannot be had is still read."""
    try:
        found, itself = finder.fetched(source)
    except InputError as error:
        if source.script:
            from lora_doctor.engine.program import only_read

            return *only_read(source, recipe, str(error)), settings
        if recipe.set_up is None:
            raise
        return replace(source, out_of_reach=str(error)), recipe, settings
    if itself is None:
        return found, recipe, settings
    if settings.adapter is not None:
        raise InputError(f"MODEL {itself.place}: is an adapter; give its base model")
    return *onto_base(found, recipe, itself), replace(settings, adapter=itself)


def _check_optimizer(source: ModelSource, given: CheckOptions) -> None:
    arguments = (given["optimizer"], given["scheduler"], given["planned_steps"])
    if all(argument is None for argument in arguments):
        return
    from lora_doctor.evidence.optimizer import check_arguments

    if source.kind != "module":
        raise InputError(
            f"optimizer: holds tensors of one model in memory; give that model, not {source}"
        )
    check_arguments(*arguments)
