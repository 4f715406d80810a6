"""LD706: an installed package imports a name that another installed package does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Severity,
    Symptom,
)

if TYPE_CHECKING:
    from lora_doctor.static.installed.import_chain import MissingImport

#: A name that moved or went between releases, asked for by code that is installed.
_NAME = r"cannot import name '\w+' from '(transformers|accelerate|huggingface_hub|peft|trl)[\w.]*'"
#: Where code is that pip has installed, and not a repository or a script.
_INSTALLED = (
    r"^(?!.*transformers_modules).*[\\/](?:(?:site|dist)-packages|peft|trl|accelerate|bitsandbytes|"
    r"transformers|datasets|llamafactory|llmtuner|axolotl|swift|unsloth\w*)[\\/]"
)
#: The same, asked for as an attribute of a module.
_ATTRIBUTE = (
    r"module '?(?:transformers|accelerate|huggingface_hub|peft|trl)\.[\w.]+'? "
    r"has no attribute '\w+'"
)
_SUBMODULE = r"No module named '(?:transformers|accelerate|huggingface_hub|peft|trl)\.[\w.]+'"
_FOLLOWED = (
    r"^(?!.*transformers_modules).*[\\/]"
    r"(?:peft|trl|accelerate|bitsandbytes|transformers|datasets)[\\/]"
)
_MODULE = (
    r"No module named '(transformers|accelerate|huggingface_hub|peft|trl|triton|scipy|"
    r"pkg_resources)[\w.]*'"
)
#: Nothing of what follows can hold when PEFT cannot be imported.
_CONSEQUENCES = (
    "builds", "attaches", "forward", "starts-at-base", "loss-finite", "gradients", "steps",
    "adapters-move", "loss-falls", "save-reload", "merge",
)  # fmt: skip


class ImportsDoNotFit(Rule):
    """Two installed packages have incompatible versions: one imports a name that the other no
    longer has, or does not have yet.

    ## What happens
    `import peft`, or the first import of `transformers`, `accelerate`, `bitsandbytes` or `trl`,
    ends at `ImportError: cannot import name 'HybridCache' from 'transformers'`, or at
    `ModuleNotFoundError: No module named ...`, in a file under `site-packages`. A bitsandbytes that
    cannot be imported makes every `get_peft_model` fail, even without quantization.

    ## Why
    pip compares only the versions that a package requires, and most have no upper limit, or no
    limit at all: `pip install -U transformers` keeps a PEFT that was written for an older one.

    ## Versions
    Any. PEFT 0.17 with transformers 5, PEFT 0.14 with transformers 4.39, PEFT 0.21 with accelerate
    0.27. What the installed packages import is read from their files, in the order in which Python
    imports them, and compared with what the others contain; nothing is imported. Imports inside
    `try` or under a condition are ignored. Where the model was built, PEFT was imported
    successfully, and nothing is read.

    ## Fix
    Upgrade the older one. Which one that is follows from the versions that the importing package
    checks in its own source.

    ## Links
    https://github.com/huggingface/peft/issues/2292
    """

    code = "LD706"
    name = "imports-do-not-fit"
    summary = "An installed package imports a name that another installed package does not have."
    depth = "static"
    about_environment = True
    symptoms = (
        Symptom(_NAME, raised_in=_INSTALLED, weight=1),
        Symptom(_NAME, alone=True),
        Symptom(_MODULE, raised_in=_FOLLOWED, weight=1),
        Symptom(_SUBMODULE, raised_in=_INSTALLED, weight=1),
        Symptom(_ATTRIBUTE, raised_in=_INSTALLED, weight=1),
        Symptom(_ATTRIBUTE, alone=True),
        Symptom(r"No module named 'triton\.ops'"),
        Symptom(
            r"Failed to import (?:trl|peft|transformers|diffusers)\.\S+ because of the following "
            r"error \(look up to see its traceback\): (?:No module named|cannot import name '\w+' "
            r"from) '[\w.]+'",
            alone=True,
        ),
    )

    told_as = ("PEFT cannot be imported: the installed transformers lacks a name that it imports.",)
    examples = (
        Example(
            "broken",
            "",
            installed="tests/installed/older_accelerate",
            depth="static",
            why="an accelerate without names that PEFT imports",
        ),
        Example(
            "healthy",
            "",
            installed="tests/installed/guarded_imports",
            depth="static",
            why="imports under try, for type checkers, in a function, in a text",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not _may_not_import(case):
            return
        from lora_doctor.static.installed.import_chain import missing_imports
        from lora_doctor.static.installed.shared_folders import shared_folders

        mixed = {shared.package for shared in shared_folders()}
        found = [
            missing
            for missing in missing_imports()
            if not mixed & {missing.importer, missing.provider} and _concerns(case, missing)
        ]
        for group in _connected(found):
            yield self._finding(case, group)

    def _finding(self, case: Case, group: Sequence[MissingImport]) -> Finding:
        from lora_doctor.static.installed.environment import installed_version
        from lora_doctor.static.installed.pair_repair import pip_lines

        first = min(group, key=lambda missing: missing.name is None)
        lines = list(dict.fromkeys(line for missing in group for line in pip_lines(missing)))
        names = dict.fromkeys(
            name for missing in group for name in (missing.importer, missing.provider)
        )
        versions = ", ".join(f"{name} {installed_version(name) or '(not installed)'}"
                             for name in names)  # fmt: skip
        roots = ", ".join(f"`{root}`" for root in dict.fromkeys(one.root for one in group))
        importer = " ".join(filter(None, (first.importer, installed_version(first.importer))))
        return self.finding(
            _severity(case, group),
            f"{roots} {'fail' if ', ' in roots else 'fails'}: {importer} imports "
            f"{first.name or first.module}, which "
            + (f"{first.provider} {installed_version(first.provider)} does not have."
               if installed_version(first.provider) else "is not installed."),
            location=Location("environment", versions),
            evidence=tuple(
                Measurement(missing.root, missing.message, f"{missing.file}:{missing.line}")
                for missing in group
            ),
            proof=_proof(case, first),
            fixes=tuple(Fix(line, "manual") for line in lines),
            explains=_CONSEQUENCES,
        )  # fmt: skip


def _may_not_import(case: Case) -> bool:
    """Whether anything is open: a model that was built needed all of these packages."""
    if case.source.kind in ("environment", "script"):
        return True
    if not case.reaches("meta"):
        raise EvidenceError("at depth static nothing is imported; run lora-doctor env --check")
    return not case.has("structure")


def _proof(case: Case, missing: MissingImport) -> Proof:
    """Executed where a process of ours has raised this; the files tell it otherwise."""
    raised = case.why_not("structure") if case.source.kind != "environment" else ""
    if missing.message in raised:
        return Proof("executed", "the packages were imported, and raised this")
    return Proof(
        "inferred",
        "read from the installed files, in the order in which Python imports them; nothing was "
        "imported",
    )


def _concerns(case: Case, missing: MissingImport) -> bool:
    """TRL is a matter of scripts that import it."""
    if "trl" not in missing.root:
        return True
    if case.source.kind == "environment":
        return True
    return case.has("script") and _imports_trl(case)


def _imports_trl(case: Case) -> bool:
    text = case.script.path.read_text("utf-8", "replace")
    return re.search(r"^\s*(from|import)\s+trl\b", text, re.MULTILINE) is not None


def _severity(case: Case, group: Sequence[MissingImport]) -> Severity:
    """Whether training surely needs it: not everybody uses TRL's trainers, or transformers'."""
    optional = all("trl" in one.root or "Trainer" in one.root for one in group)
    return "warning" if optional and case.source.kind == "environment" else "error"


def _connected(found: Sequence[MissingImport]) -> list[list[MissingImport]]:
    """Those that have a package in common together: one of them is what is too old."""
    groups: list[list[MissingImport]] = []
    for missing in found:
        packages = {missing.importer, missing.provider}
        near = [
            group
            for group in groups
            if any(packages & {one.importer, one.provider} for one in group)
        ]
        merged = [one for group in near for one in group] + [missing]
        groups = [group for group in groups if group not in near] + [merged]
    return groups
