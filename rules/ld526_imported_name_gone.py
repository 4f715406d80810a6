"""LD526: the script imports a name that the installed release of a library does not have."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    GoneName,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    gone_names,
)

_PACKAGE = "(?:transformers|accelerate|huggingface_hub|peft|trl|datasets)"
_NAME = rf"cannot import name '\w+' from '{_PACKAGE}\b[\w.]*'"
_MODULE = rf"No module named '{_PACKAGE}\.[\w.]+'"
#: Code of the user: no installed package, no framework that is checked out, no remote code.
_OWN = (
    r"^(?!.*(?:(?:site|dist)-packages|transformers_modules|"
    r"[\\/](?:llamafactory|llmtuner|axolotl|swift|unsloth\w*|trl|peft)[\\/]))"
)
#: An import that a library makes itself, when one of its names is first asked for.
_LATE = r"Failed to import \S+ because of the following error"
_PROOF = Proof("read", "no file of the installed package provides the name")


class ImportedNameGone(Rule):
    """The script imports a name that the installed transformers, PEFT, TRL, accelerate or datasets
    does not have.

    ## What happens
    `ImportError: cannot import name 'AdamW' from 'transformers'`, or `ModuleNotFoundError: No
    module named 'transformers.deepspeed'`, as soon as that line runs; for `peft.NAME(...)` it is
    `AttributeError: module 'peft' has no attribute 'NAME'`.

    ## Why
    The libraries remove and move names: `transformers.AdamW`,
    `peft.prepare_model_for_int8_training`, `trl.DataCollatorForCompletionOnlyLM`. Scripts written
    for older releases still import them, and scripts written for newer ones import names that are
    not there yet.

    ## Versions
    The sources of the installed release are read. An import inside `try` and `except ImportError`
    is not reported, nor is a package of which the script pins another release.

    ## Fix
    By hand: the place that has the name now, or a release that has it.

    ## Links
    https://github.com/huggingface/transformers/blob/main/MIGRATION_GUIDE_V5.md
    """

    code = "LD526"
    name = "imported-name-gone"
    summary = "The script imports a name that the installed library does not have."
    depth = "static"
    symptoms = (
        Symptom(_NAME, "imported by the script itself", raised_in=_OWN, weight=1),
        Symptom(_MODULE, "imported by the script itself", raised_in=_OWN, weight=1),
        Symptom(
            r"cannot import name '\w+' from '(?:peft|trl)\b[\w.]*'",
            alone=True,
            unless=_LATE,
            weight=1,
        ),
        Symptom(_NAME, alone=True, unless=_LATE, weight=-1),
        Symptom(_MODULE, alone=True, unless=_LATE),
        Symptom(
            rf"module '?{_PACKAGE}(?!_modules)[\w.]*'? has no attribute '\w+'",
            raised_in=_OWN,
            weight=1,
        ),
        Symptom(rf"module '?{_PACKAGE}'? has no attribute '\w+'", alone=True),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/name_gone.py",
            depth="static",
            why="peft.LoraConfiguration, which no release has",
        ),
        Example("healthy", "tests/scripts/prepared_first.py", depth="static"),
        Example(
            "healthy",
            "tests/scripts/names_of_several_releases.py",
            depth="static",
            why="the old name under try, for older releases",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run imported it itself
        for found in gone_names(case.program):
            yield self._finding(found)

    def _finding(self, found: GoneName) -> Finding:
        installed = f"{found.package} {found.version}"
        used = "called" if found.attribute else "imported"
        evidence = [Measurement(used, found.dotted, str(found.place)),
                    Measurement("installed", installed, "installed package")]  # fmt: skip
        if found.now:
            evidence.append(Measurement("nearest name", found.now, "installed packages"))
            title = f"Use {found.now}, after comparing the two, or a release that has the name."
        else:
            title = f"Import another name, or install a {found.package} that has it."
        return self.finding(
            "error",
            f"The installed {installed} has no `{found.dotted}`: the line raises {found.raised}.",
            location=Location("file", found.place.file, found.place.line),
            evidence=tuple(evidence),
            proof=_PROOF,
            fixes=(Fix(title, "manual"),),
        )
