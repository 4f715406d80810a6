"""LD529: a script imports a name that the installed library does not have."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    MissingName,
    Proof,
    Rule,
    Symptom,
    missing_names,
)

_NAME = r"cannot import name '\w+' from '(?:transformers|accelerate|huggingface_hub|peft|trl)\b"
_MODULE = r"No module named '(?:transformers|accelerate|huggingface_hub|peft|trl)\.[\w.]+'"
#: Code of the user: no installed package, no framework that is checked out, no remote code.
_OWN = (
    r"^(?!.*(?:(?:site|dist)-packages|transformers_modules|"
    r"[\\/](?:llamafactory|llmtuner|axolotl|swift|unsloth\w*|trl|peft)[\\/]))"
)
_PROOF = Proof("read", "from the source files of the installed package; nothing was imported")


class NameNotInTheLibrary(Rule):
    """The script imports a name from transformers, PEFT or TRL that the installed release does not
    have.

    ## What happens
    `ImportError: cannot import name 'prepare_model_for_int8_training' from 'peft'`, or `No module
    named 'transformers.deepspeed'`, in the first second of the run.

    ## Why
    The libraries rename functions, move modules and remove classes, and scripts written for older
    releases still import them.

    ## Versions
    Whether the name exists is read from the files of the installed release. Imports under `try` or
    under a condition are ignored, as are packages of which the script pins another release, itself
    or in a requirements.txt next to it.

    ## Fix
    By hand: import the name that replaces it, or install the release that the script was written
    for.

    ## Links
    https://github.com/huggingface/transformers/blob/main/MIGRATION_GUIDE_V5.md
    """

    code = "LD529"
    name = "name-not-in-the-library"
    summary = "The script imports a name that the installed library does not have."
    depth = "static"
    symptoms = (
        Symptom(_NAME, "imported by the script itself", raised_in=_OWN, weight=1),
        Symptom(_MODULE, "imported by the script itself", raised_in=_OWN, weight=1),
        Symptom(r"cannot import name '\w+' from '(?:peft|trl)\b", alone=True, weight=1),
        Symptom(_NAME, alone=True, weight=-1),
        Symptom(_MODULE, alone=True),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/name_of_an_older_release.py",
            depth="static",
            requires={"peft": ">=0.10"},
            why="prepare_model_for_int8_training, which PEFT 0.10 removed",
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
        for found in missing_names(case.program):
            yield self._finding(found)

    def _finding(self, found: MissingName) -> Finding:
        installed = f"{found.package} {found.version}".strip()
        wanted = found.name or found.module
        return self.finding(
            "error",
            f"The installed {installed} has no {wanted}: the import raises "
            f"{'ImportError' if found.name else 'ModuleNotFoundError'}.",
            location=Location("file", found.place.file, found.place.line),
            evidence=(
                Measurement("import", found.message, str(found.place)),
                Measurement("installed", installed, "its files"),
            ),
            proof=_PROOF,
            fixes=(Fix(_advice(found, wanted), "manual"),),
        )


def _advice(found: MissingName, wanted: str) -> str:
    if found.now:
        return f"Write {found.now} instead, where that is what is meant."
    return f"Remove {wanted}, or install a release of {found.package} that has it."
