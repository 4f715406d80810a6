"""The Python API behind ``lora_doctor.check``, ``fix`` and ``verify``. The CLI calls the same.

The options stand once, in ``CaseOptions`` and ``CheckOptions`` of ``options`` (what a type checker
and an editor read) with their defaults beside them; ``inspect.signature`` and ``help`` show them as
keyword arguments of each function.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lora_doctor.api.children import child_for
from lora_doctor.api.options import DEFAULTS, CaseOptions, CheckOptions, takes
from lora_doctor.engine import registry
from lora_doctor.engine.case import Case
from lora_doctor.engine.diagnose import diagnose, diagnose_and_fix, verification_of
from lora_doctor.engine.examine import read_input
from lora_doctor.engine.limits import Limits
from lora_doctor.engine.rule import Rule
from lora_doctor.engine.saved_adapter import Finder, of_trained_config, onto_base
from lora_doctor.engine.set_up import set_up_file
from lora_doctor.engine.settings import Data, Settings
from lora_doctor.errors import InputError
from lora_doctor.limits import MOST_DATA_ROWS
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.files.prescription import Prescription
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.budget import read_budgets
from lora_doctor.results.depth import DEPTHS
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.samples import Samples
from lora_doctor.results.verification import Verification
from lora_doctor.static.adapter_files import AdapterFiles, weights_beside
from lora_doctor.static.model_source import ModelSource, parse_model

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

#: The devices of the command line, and one of several GPUs.
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@takes(CheckOptions)
def check(model: Any, recipe: Any = None, **options: Unpack[CheckOptions]) -> Diagnosis:
    """Diagnose a LoRA set-up; nothing of the user's is changed or written.

    Args:
        model: a hub id, a folder, ``arch:NAME``, ``package.module:factory``, or a loaded
            ``nn.Module`` or ``PeftModel`` (run on a copy that shares its weights). A training
            script (``train.py``) is read and not run. So is the file of a training framework
            (LLaMA-Factory, axolotl, TRL, ms-swift: YAML, JSON, or a shell script with its command),
            which names the model and is the recipe.
        recipe: mapping or file with PEFT's and transformers' names, a PEFT config object, or
            ``None`` to have one proposed by looking at the model.
        depth: how far evidence may go: ``static``, ``meta``, ``tiny`` or ``full``.
        revision: branch, tag or commit of a hub id.
        format: the framework whose file it is, where its content does not tell.
        trust_remote_code: allow the code of the model's repository to run, in a child process.
        device: where the training contract runs: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        steps: optimizer steps of the training contract.
        limits: seconds for each stage, and bytes for a child process (``None``: by size). When one
            strikes, the answer is undetermined.
        batches: forward arguments to run a loaded module with (name to tensor).
        optimizer: of a loaded module, to find what it will not update: a torch optimizer, its
            parameter groups (``[{"params": [...], "lr": 1e-4}, ...]``), or one of these for each
            phase of training, as a list or as ``{"phase": groups}``. Only looked at.
        scheduler: the learning rate scheduler of that optimizer; a copy of it is run for
            ``planned_steps``.
        planned_steps: the number of optimizer steps of the whole run.
        memory: also make the memory plan; a recipe with a ``memory_budget`` has it made anyway.
        data: a file of training data (JSON lines, JSON, CSV, Parquet, Arrow): its rows go through
            the model's tokenizer, and rules say which of their tokens are supervised.
        eval_data: a file of evaluation data, compared with ``data``.
        rows: how many rows of ``data`` are looked at, spread over the file.
        samples: who sees texts of these rows: ``people`` (terminal, page), ``all`` (JSON, too) or
            ``none``.
        budgets: what is asserted of numbers, by name:
            ``{"trainable-share": {"max": 0.02, "level": "warn"}}``; docs/gate.md has the names.
        prescription: what ``fix --apply`` wrote: its patches are in force, and its recipe is taken
            where none is given.
        script_arguments: words of the command line that the training script is started with.
        adapter: a saved adapter that is to be loaded onto the model: its folder, or ``ORG/NAME`` or
            ``ORG/NAME@REVISION`` on the hub, of which only the config and the header are fetched.
            Its config is the recipe, and the recipe given holds only how the model is loaded and
            trained. A MODEL that is an adapter is one onto the base model that its config names.
        progress: called with a short text on what is going on.
        worker: a running child process to use again, which saves its imports; it stays open.
        select, ignore: rule codes or prefixes of codes.
        rules: folders with rule files of your own.
        strict: undetermined, too, where a rule of this depth is skipped for a reason that you can
            change: a package missing, a file unreadable, a hub that does not answer, code that is
            not trusted, a limit.

    Raises:
        InputError: model or recipe cannot be used; one line that says what, where, what to do.
        TypeError: there is no such option.
    """
    found = _rules(options)
    selection = _selection(options, found)
    with open_case(model, recipe, options) as case:
        diagnosis = diagnose(case, found, selection, strict=options.get("strict", False))
    trained = isinstance(recipe, (str, Path)) and weights_beside(Path(recipe)) is not None
    return of_trained_config(diagnosis) if trained else diagnosis


@takes(CheckOptions)
def fix(
    model: Any,
    recipe: Any = None,
    *,
    unsafe_fixes: bool = False,
    **options: Unpack[CheckOptions],
) -> Diagnosis:
    """Diagnose, fix, and run the training contract before and after.

    The result holds the fixed recipe, the applied fixes and what remains; no file is written.
    Takes the options of :func:`check`, but for ``prescription``, which holds fixes already.
    ``unsafe_fixes`` also applies fixes that may change what is learnt, memory or speed.

    Raises:
        InputError: as :func:`check`, or a prescription is given.
        TypeError: there is no such option.
    """
    if options.get("prescription") is not None:
        raise InputError("prescription: holds fixes already; fix the recipe without it")
    found = _rules(options)
    selection = _selection(options, found)
    with open_case(model, recipe, options) as case:
        strict = options.get("strict", False)
        return diagnose_and_fix(case, found, selection, unsafe=unsafe_fixes, strict=strict)


@takes(CheckOptions)
def fix_adapter(
    model: Any, recipe: Any = None, *, into: Path | None = None, **options: Unpack[CheckOptions]
) -> Diagnosis:
    """Diagnose a saved adapter, and write it under the names that the model has into a new folder.

    Takes the options of :func:`check`; ``adapter`` is needed. Without ``into``, or where no other
    names were proven, nothing is written and the diagnosis is that of the adapter as it is;
    otherwise it is that of the new folder.

    Raises:
        InputError: as :func:`check`, or the folder cannot be written.
    """
    found = _rules(options)
    selection = _selection(options, found)
    with open_case(model, recipe, options) as case:
        first = diagnose(case, found, selection)
        renaming = case.adapter_loading.renaming if case.has("adapter_loading") else None
        adapter = case.adapter
    if into is None or renaming is None or not renaming.proven:
        return first
    if adapter.snapshot is not None:
        raise InputError(
            f"adapter {adapter.place}: only its header was fetched; download it (hf download "
            f"{adapter.snapshot.model_id} --local-dir DIR) and give DIR"
        )
    from lora_doctor.prescription.adapter_folder import write_renamed

    write_renamed(adapter, renaming, into)
    again: CheckOptions = {**options, "adapter": into}
    return check(model, recipe, **again)


@takes(CaseOptions)
def verify(model: Any, recipe: Any = None, **options: Unpack[CaseOptions]) -> Verification:
    """Run the training contract: a short forward/backward with named checks.

    Takes the options of :func:`check` that are not about rules; ``depth`` is ``tiny`` (shrunken
    model) or ``full``.

    Raises:
        InputError: as :func:`check`, another depth, or the model is a training script.
        TypeError: there is no such option.
    """
    depth = options.get("depth", "tiny")
    if depth not in ("tiny", "full"):
        raise InputError(f"depth {depth!r}: a verification runs at tiny or full")
    with open_case(model, recipe, options) as case:
        _refuse_script(case)
        read_input(case)
        return verification_of(case)


def diagnose_contract(model: Any, recipe: Any = None, **options: Unpack[CheckOptions]) -> Diagnosis:
    """The training contract alone, as a diagnosis: what ``lora-doctor verify`` prints.

    Of the rules only the fallback is asked, which reports a failure of the contract as it is.

    Raises:
        InputError: as :func:`check`, the model is a training script, or the fallback is left out.
    """
    found = _rules(options)
    selection = _selection(options, found)
    found = [rule for rule in found if rule.is_fallback]
    if not any(rule in selection for rule in found):
        raise InputError("--select or --ignore leaves out LD001, which is all that verify asks")
    with open_case(model, recipe, options) as case:
        _refuse_script(case)
        return diagnose(case, found, selection, strict=options.get("strict", False))


def check_environment() -> Diagnosis:
    """Whether the installed packages fit each other, as a diagnosis: ``lora-doctor env --check``.

    Files and metadata are read; nothing of what is installed is imported.
    """
    found = [rule for rule in registry.find_rules() if rule.about_environment]
    source = ModelSource("environment", "installed packages")
    with open_case(source, None, {"depth": "static"}) as case:
        return diagnose(case, found)


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
        raise InputError(f"depth {depth!r}: is one of {', '.join(DEPTHS)}")
    _check_run(given)
    if isinstance(model, str) and not model.strip():
        raise InputError("MODEL is empty; give a hub id, a folder, arch:NAME or module:factory")
    checked_recipe = _as_recipe(recipe, given["format"])
    model, checked_recipe, revision = _of_set_up(model, checked_recipe, given)
    progress = given["progress"] or (lambda text: None)
    finder = Finder(limits.hub_seconds, progress, given["trust_remote_code"])
    model, adapter = finder.find(model, given["adapter"])
    source = parse_model(model, revision=revision, trust_remote_code=given["trust_remote_code"])
    source, checked_recipe = _of_script(source, checked_recipe, given)
    if adapter is not None:
        source, checked_recipe = onto_base(source, checked_recipe, adapter)
    patches: tuple[Patch, ...] = ()
    if given["prescription"] is not None:
        patches, prescribed = _prescribed(given["prescription"], source)
        checked_recipe = checked_recipe if recipe is not None else prescribed
    if depth == "full" and source.kind in ("arch", "factory"):
        raise InputError(f"MODEL {source}: has no weights to load; --depth tiny runs without any")
    _check_optimizer(source, given)
    settings = _settings(given, limits, adapter)
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


def _check_run(given: CaseOptions) -> None:
    """Raises InputError for a device or a number of steps that there cannot be, at every depth."""
    device, steps = given["device"], given["steps"]
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise InputError(f"device {device!r}: is one of auto, cpu, cuda, mps")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps {steps!r}: is a whole number of at least 1")


def _settings(given: CheckOptions, limits: Limits, adapter: AdapterFiles | None) -> Settings:
    batches = given["batches"]
    return Settings(
        depth=given["depth"],
        device=given["device"],
        steps=given["steps"],
        limits=limits,
        batches=tuple(batches) if batches else None,
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
        raise InputError(f"rows {rows!r}: is a whole number from 1 to {MOST_DATA_ROWS:,}")
    if samples not in get_args(Samples):
        raise InputError(f"samples {samples!r}: is one of {', '.join(get_args(Samples))}")
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
            "prescription: this model is loaded already; call lora_doctor.apply before loading it"
        )
    held = given if isinstance(given, Prescription) else checked_prescription(Path(given))
    return held.patches, _as_recipe(held.recipe)


def _refuse_script(case: Case) -> None:
    """Raises InputError for a script that does not say which model and adapter it trains."""
    if case.source.kind == "script":
        from lora_doctor.engine.program import why_only_read

        why = why_only_read(case.source, case.asked)
        raise InputError(
            f"MODEL {case.source.name!r}: a training script is only read, never run; "
            + (why or "verify the model that it trains (a hub id, a folder or "
               "package.module:factory)")
        )  # fmt: skip


def _of_set_up(model: Any, recipe: Recipe, given: CheckOptions) -> tuple[Any, Recipe, str | None]:
    """The model, recipe and revision that the file of a training framework says; any other MODEL
    as it is."""
    file = set_up_file(model)
    if file is None:
        return model, recipe, given["revision"]
    from lora_doctor.engine.set_up import of_set_up

    model, named, recipe = of_set_up(file, recipe, given["format"])
    return model, recipe, given["revision"] or named


def _of_script(
    source: ModelSource, recipe: Recipe, given: CheckOptions
) -> tuple[ModelSource, Recipe]:
    """What a training script says of its model and recipe; any other source as it is."""
    words = given["script_arguments"]
    if source.kind == "script":
        from lora_doctor.engine.program import of_program

        trust = given["trust_remote_code"]
        return of_program(source, recipe, tuple(words), trust_remote_code=trust)
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
    adapter on it. A script whose model cannot be had is still read."""
    try:
        found, itself = finder.fetched(source)
    except InputError as error:
        if not source.script:
            raise
        from lora_doctor.engine.program import only_read

        return *only_read(source, recipe, str(error)), settings
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


def _rules(options: CheckOptions) -> list[type[Rule]]:
    return registry.find_rules(Path(folder) for folder in _several(options.get("rules", ())))


def rules_and_selection(
    options: CheckOptions,
) -> tuple[list[type[Rule]], registry.RuleSelection]:
    """All rules, and which of them the options select. Raises InputError as :func:`check`."""
    found = _rules(options)
    return found, _selection(options, found)


def _selection(options: CheckOptions, rules: Sequence[type[Rule]]) -> registry.RuleSelection:
    selection = registry.RuleSelection(
        _several(options.get("select", ())), _several(options.get("ignore", ()))
    )
    registry.check_selection(selection, rules)
    return selection


def _several(given: Any) -> tuple[Any, ...]:
    """One text or path as a tuple of one: the letters of a text are what nobody means."""
    return (given,) if isinstance(given, (str, os.PathLike)) else tuple(given)
