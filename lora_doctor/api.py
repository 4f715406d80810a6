"""The Python API behind ``lora_doctor.check``, ``fix`` and ``verify``. The CLI calls the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.engine import registry
from lora_doctor.engine.case import Case, Limits, Settings
from lora_doctor.engine.diagnose import diagnose, diagnose_and_fix, read_input, verification_of
from lora_doctor.engine.rule import Rule
from lora_doctor.errors import InputError
from lora_doctor.recipe.edit import Patch
from lora_doctor.recipe.files.read_write import as_recipe
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.depth import DEPTHS, Depth
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.verification import Verification
from lora_doctor.sandbox.worker import Worker
from lora_doctor.static.model_source import ModelSource, parse_model

if TYPE_CHECKING:
    import os

    from lora_doctor.recipe.files.prescription import Prescription


def check(
    model: Any,
    recipe: Any = None,
    *,
    depth: Depth = "tiny",
    revision: str | None = None,
    trust_remote_code: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    rules: Sequence[str | os.PathLike[str]] = (),
    limits: Limits | None = None,
    device: str = "auto",
    steps: int = 3,
    batches: Sequence[Mapping[str, Any]] | None = None,
    optimizer: Any = None,
    scheduler: Any = None,
    planned_steps: int | None = None,
    memory: bool = False,
    prescription: str | os.PathLike[str] | Prescription | None = None,
    progress: Callable[[str], None] | None = None,
    only_fallbacks: bool = False,
    worker: Worker | None = None,
) -> Diagnosis:
    """Diagnose a LoRA set-up; nothing of the user's is changed or written.

    Args:
        model: a hub id, a folder, ``arch:NAME``, ``package.module:factory``, or a loaded
            ``nn.Module`` or ``PeftModel`` (run on a copy that shares its weights). A training
            script (``train.py``) is read and not run.
        recipe: mapping or file with PEFT's and transformers' names, a PEFT config object, or
            ``None`` to have one proposed by looking at the model.
        depth: how far evidence may go: ``static``, ``meta``, ``tiny`` or ``full``.
        select, ignore: rule codes or prefixes of codes.
        rules: folders with rule files of your own.
        batches: forward arguments to run a loaded module with (name to tensor).
        optimizer: of a loaded module, to find what it will not update: a torch optimizer, its
            parameter groups (``[{"params": [...], "lr": 1e-4}, ...]``), or one of these for each
            phase of training, as a list or as ``{"phase": groups}``. Only looked at.
        scheduler: the learning rate scheduler of that optimizer; a copy of it is run for
            ``planned_steps``, the number of optimizer steps of the whole run.
        memory: also make the memory plan; a recipe with a ``memory_budget`` has it made anyway.
        prescription: what ``fix --apply`` wrote: its patches are in force, and its recipe is taken
            where none is given.
        progress: called with a short text on what is going on.
        only_nets: run the training contract and report its failure, without the other rules.
        worker: a running child process to use again, which saves its imports; it stays open.

    Raises:
        InputError: model or recipe cannot be used; one line that says what, where, what to do.
    """
    found = _rules(rules)
    selection = _selection(select, ignore, found)
    if only_fallbacks:
        _refuse_script(model)
        found = [rule for rule in found if rule.is_fallback]
        if not any(rule in selection for rule in found):
            raise InputError("--select or --ignore leaves out LD001, which is all that verify asks")
    with open_case(
        model, recipe, depth=depth, revision=revision, trust_remote_code=trust_remote_code,
        limits=limits, device=device, steps=steps, batches=batches, progress=progress,
        worker=worker, optimizer=optimizer, scheduler=scheduler, planned_steps=planned_steps,
        memory=memory, prescription=prescription,
    ) as case:  # fmt: skip
        return diagnose(case, found, selection)


def fix(
    model: Any,
    recipe: Any = None,
    *,
    unsafe_fixes: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    rules: Sequence[str | os.PathLike[str]] = (),
    **options: Any,
) -> Diagnosis:
    """Diagnose, fix, and run the training contract before and after.

    The result holds the fixed recipe, the applied fixes and what remains; no file is written.
    Takes the same arguments as :func:`check`. ``unsafe_fixes`` also applies fixes that may change
    what is learnt, memory or speed.
    """
    if options.get("prescription") is not None:
        raise InputError("prescription: holds fixes already; fix the recipe without it")
    found = _rules(rules)
    selection = _selection(select, ignore, found)
    with open_case(model, recipe, **options) as case:
        return diagnose_and_fix(case, found, selection, unsafe=unsafe_fixes)


def verify(model: Any, recipe: Any = None, **options: Any) -> Verification:
    """Run the training contract: a short forward/backward with named checks.

    Takes the same arguments as :func:`check`; ``depth`` is ``tiny`` (shrunken model) or ``full``.
    """
    if options.get("depth", "tiny") not in ("tiny", "full"):
        raise InputError(f"depth {options['depth']!r}: a verification runs at tiny or full")
    _refuse_script(model)
    with open_case(model, recipe, **options) as case:
        read_input(case)
        return verification_of(case)


@contextlib.contextmanager
def open_case(
    model: Any,
    recipe: Any = None,
    *,
    depth: Depth = "tiny",
    revision: str | None = None,
    trust_remote_code: bool = False,
    limits: Limits | None = None,
    device: str = "auto",
    steps: int = 3,
    batches: Sequence[Mapping[str, Any]] | None = None,
    optimizer: Any = None,
    scheduler: Any = None,
    planned_steps: int | None = None,
    memory: bool = False,
    prescription: str | os.PathLike[str] | Prescription | None = None,
    progress: Callable[[str], None] | None = None,
    worker: Worker | None = None,
) -> Iterator[Case]:
    """A case with a child process behind it, closed at the end unless it was handed in. Files of
    a hub id are fetched."""
    if depth not in DEPTHS:
        raise InputError(f"depth {depth!r}: is one of {', '.join(DEPTHS)}")
    limits = limits or Limits()
    tell = progress or (lambda text: None)
    if isinstance(model, str) and not model.strip():
        raise InputError("MODEL is empty; give a hub id, a folder, arch:NAME or module:factory")
    checked_recipe = as_recipe(recipe)
    source = parse_model(model, revision=revision, trust_remote_code=trust_remote_code)
    patches: tuple[Patch, ...] = ()
    if prescription is not None:
        patches, prescribed = _prescribed(prescription, source)
        checked_recipe = checked_recipe if recipe is not None else prescribed
    if depth == "full" and source.kind in ("arch", "factory"):
        raise InputError(f"MODEL {source}: has no weights to load; --depth tiny runs without any")
    if optimizer is not None or scheduler is not None or planned_steps is not None:
        _check_optimizer(source, optimizer, scheduler, planned_steps)
    if source.kind == "script":
        depth = "static"  # it is read, never run
    settings = Settings(
        depth, device, steps, limits, tuple(batches) if batches else None,
        optimizer=optimizer, scheduler=scheduler, planned_steps=planned_steps, memory=memory,
    )  # fmt: skip
    on_gpu = device in ("cuda", "mps") or (device == "auto" and depth == "full")
    # Matrices of a tiny model are so small that a second thread only costs.
    threads = None if depth == "full" else 1
    with contextlib.ExitStack() as stack:
        # Only real weights are fetched by a child; everything else it needs is on disk by then.
        offline = source.kind != "hub" or depth != "full"
        child = worker or stack.enter_context(Worker(cuda=on_gpu, threads=threads, offline=offline))
        if depth != "static" and source.kind != "module":
            child.start()  # imports run while the files are read
        if source.kind == "hub":
            source = _fetch(source, limits.hub_seconds, tell)
        case = Case(source, checked_recipe, settings, child, patches=patches, progress=tell)
        stack.callback(case.close)
        yield case


def _prescribed(
    given: str | os.PathLike[str] | Prescription, source: ModelSource
) -> tuple[tuple[Patch, ...], Recipe]:
    """The patches and the recipe of a prescription."""
    from lora_doctor.prescription.apply import checked_prescription
    from lora_doctor.recipe.files.prescription import Prescription

    if source.kind == "module":
        raise InputError(
            "prescription: this model is loaded already; call lora_doctor.apply before loading it"
        )
    held = given if isinstance(given, Prescription) else checked_prescription(Path(given))
    return held.patches, as_recipe(held.recipe)


def _refuse_script(model: Any) -> None:
    source = parse_model(model)
    if source.kind == "script":
        raise InputError(
            f"MODEL {source.name!r}: a training script is only read, never run; verify the model "
            "that it trains (a hub id, a folder or package.module:factory)"
        )


def _fetch(source: ModelSource, seconds: float, progress: Callable[[str], None]) -> ModelSource:
    from lora_doctor.static.hub.hub import fetch_small_files

    progress(f"fetching the small files of {source.name}")
    return source.fetched(
        fetch_small_files(source.name, revision=source.revision, time_limit=seconds)
    )


def _check_optimizer(
    source: ModelSource, optimizer: Any, scheduler: Any, planned_steps: int | None
) -> None:
    from lora_doctor.evidence.optimizer import check_arguments

    if source.kind != "module":
        raise InputError(
            f"optimizer: holds tensors of one model in memory; give that model, not {source}"
        )
    check_arguments(optimizer, scheduler, planned_steps)


def _rules(folders: Sequence[str | os.PathLike[str]]) -> list[type[Rule]]:
    return registry.find_rules(Path(folder) for folder in folders)


def _selection(
    select: Sequence[str], ignore: Sequence[str], rules: Sequence[type[Rule]]
) -> registry.RuleSelection:
    selection = registry.RuleSelection(tuple(select), tuple(ignore))
    registry.check_selection(selection, rules)
    return selection
