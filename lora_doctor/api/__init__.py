"""The Python API behind ``lora_doctor.check``, ``fix`` and ``verify``. The CLI calls the same.

The options stand once, in ``CaseOptions`` and ``CheckOptions`` of ``options`` (what a type checker
and an editor read) with their defaults beside them; ``inspect.signature`` and ``help`` show them as
keyword arguments of each function.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_doctor.api.opening import open_case
from lora_doctor.api.options import CaseOptions, CheckOptions, takes
from lora_doctor.engine import registry
from lora_doctor.engine.case import Case
from lora_doctor.engine.diagnose import diagnose, diagnose_and_fix, verification_of
from lora_doctor.engine.examine import read_input
from lora_doctor.engine.rule import Rule
from lora_doctor.engine.saved_adapter import of_trained_config
from lora_doctor.errors import InputError
from lora_doctor.results.diagnosis import Diagnosis
from lora_doctor.results.note import Note
from lora_doctor.results.verification import Verification
from lora_doctor.static.adapter_files import weights_beside
from lora_doctor.static.model_source import ModelSource

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11


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
        steps: optimizer steps of the training contract, at least 1.
        limits: seconds for each stage, and bytes of memory for a child process (``None``: by the
            size of the checkpoint). If one is reached, the answer is undetermined.
        batches: batches to run a loaded module with, each a mapping from the names of forward
            arguments to tensors whose first dimension is the batch (``input_ids``: batch, tokens).
        optimizer: of a loaded module, to find what it will not update: a torch optimizer, its
            parameter groups (``[{"params": [...], "lr": 1e-4}, ...]``), or one of these for each
            phase of training, as a list or as ``{"phase": groups}``. It is read, never stepped.
        scheduler: the learning rate scheduler of that optimizer; a copy of it is run for
            ``planned_steps``.
        planned_steps: optimizer steps of the whole run, for ``scheduler``.
        memory: also plan the GPU memory; with a ``memory_budget`` in the recipe it is planned
            anyway.
        data: a file of training data (JSON lines, JSON, CSV, Parquet, Arrow): its rows go through
            the model's tokenizer, and rules say which of their tokens are supervised.
        eval_data: a file of evaluation data, compared with ``data``.
        rows: rows of ``data`` to examine, spread over the file, 1 to 10,000.
        samples: where texts of these rows are shown: ``people`` (terminal, page), ``all`` (also
            JSON) or ``none``.
        budgets: limits for measured numbers, by name:
            ``{"trainable-share": {"max": 0.02, "level": "warn"}}``; docs/gate.md lists the names.
            Shares are from 0 to 1; memory is a size such as ``"24GB"``, or a GPU's name.
        prescription: the file that ``fix --apply`` wrote, or a ``Prescription``: its patches are
            installed, and its recipe is used if no other is given.
        script_arguments: words of the command line that the training script is started with.
        adapter: a saved adapter that is to be loaded onto the model: its folder, or ``ORG/NAME`` or
            ``ORG/NAME@REVISION`` on the hub, of which only the config and the header are fetched.
            Its config is the recipe, and the recipe given holds only how the model is loaded and
            trained. If ``model`` is an adapter, it is loaded onto the base model that its config
            names.
        progress: called with a short text at the beginning of each stage.
        worker: a running child process to reuse, which saves its imports; it stays open.
        select, ignore: rule codes or prefixes of codes.
        rules: folders with rule files of your own.
        strict: undetermined also if a rule of this depth is skipped for a reason that you can
            change: a missing package, an unreadable file, a hub that does not answer, code that is
            not trusted, a limit.

    Returns:
        A :class:`Diagnosis`: ``verdict``, ``findings`` with evidence and fixes, the training
        contract as ``before`` (``None`` where it was not run), rules that ``passed`` or were
        ``skipped``. ``print`` shows the report of the command line. What is wrong with the set-up
        is in there and raises nothing.

    Raises:
        InputError: model or recipe cannot be used; one line that says what, where, what to do.
        TypeError: there is no such option.
    """
    with open_case(model, recipe, options) as case:
        found, selection = rules_and_selection(options)  # imported while the child imports
        diagnosis = diagnose(case, found, selection, strict=options.get("strict", False))
    trained = isinstance(recipe, (str, Path)) and weights_beside(Path(recipe)) is not None
    return of_trained_config(diagnosis) if trained else diagnosis


@takes(CheckOptions)
def fix(
    model: Any,
    recipe: Any = None,
    *,
    unsafe_fixes: bool = False,
    unfixed: Sequence[str] = (),
    **options: Unpack[CheckOptions],
) -> Diagnosis:
    """Diagnose, fix, and run the training contract before and after.

    No file is written. Takes the options of :func:`check`, except ``prescription``, which contains
    fixes already.

    Args:
        unsafe_fixes: also apply fixes that may change what is learnt, memory or speed.
        unfixed: codes of rules whose findings are shown and not fixed.

    Returns:
        The diagnosis of :func:`check`, and in addition ``fixed_recipe``, the fixes that lead to it
        (``applied``), the training contract with them (``after``) and what is still found
        (``remaining``).

    Raises:
        InputError: as :func:`check`, or a prescription is given.
        TypeError: there is no such option.
    """
    if options.get("prescription") is not None:
        raise InputError("prescription: already contains fixes; fix the recipe without it")
    with open_case(model, recipe, options) as case:
        found, selection = rules_and_selection(options)
        selection = replace(selection, unfixed=tuple(_several(unfixed)))
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
    with open_case(model, recipe, options) as case:
        found, selection = rules_and_selection(options)
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
    if adapter.pickled:
        raise InputError(
            f"adapter {adapter.place}: its weights are a pickle; convert them to safetensors first"
        )
    from lora_doctor.prescription.adapter_folder import write_renamed

    write_renamed(adapter, renaming, into)
    again: CheckOptions = {**options, "adapter": into}
    return check(model, recipe, **again)


@takes(CaseOptions)
def verify(model: Any, recipe: Any = None, **options: Unpack[CaseOptions]) -> Verification:
    """Run the training contract: a short training with named checks, and no rules.

    Takes the options of :func:`check` that are not about rules; ``depth`` is ``tiny`` (shrunken
    dimensions, random weights) or ``full`` (the real weights).

    Returns:
        A :class:`Verification`: ``outcome``, and ``checks`` with what each measured and expected.
        A training that fails is an outcome and raises nothing.

    Raises:
        InputError: as :func:`check`, another depth, or the model is a training script.
        TypeError: there is no such option.
    """
    depth = options.get("depth", "tiny")
    if depth not in ("tiny", "full"):
        raise InputError(f"depth {depth!r}: expected tiny or full for a verification")
    with open_case(model, recipe, options) as case:
        _refuse_script(case)
        read_input(case)
        return verification_of(case)


#: A contract that passes says nothing of these.
_NOT_ASKED = (
    "only the training contract was run: data, training arguments, files and packages were not "
    "checked (lora-doctor check does)"
)


def diagnose_contract(model: Any, recipe: Any = None, **options: Unpack[CheckOptions]) -> Diagnosis:
    """The training contract alone, as a diagnosis: what ``lora-doctor verify`` prints.

    Of the rules only the fallback LD001 is run, which reports a failure of the contract as it is.

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
        diagnosis = diagnose(case, found, selection, strict=options.get("strict", False))
    return replace(diagnosis, notes=(*diagnosis.notes, Note("not-asked", _NOT_ASKED)))


def check_environment() -> Diagnosis:
    """Whether the installed packages fit each other, as a diagnosis: ``lora-doctor env --check``.

    Files and metadata are read; nothing of what is installed is imported.
    """
    found = [rule for rule in registry.find_rules() if rule.about_environment]
    source = ModelSource("environment", "installed packages")
    with open_case(source, None, {"depth": "static"}) as case:
        return diagnose(case, found)


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
    """A single string or path as a tuple of one; a string is not taken for its letters."""
    return (given,) if isinstance(given, (str, os.PathLike)) else tuple(given)
