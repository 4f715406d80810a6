"""LD523: an argument that the installed release of a library does not take."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    UnknownArgument,
    unknown_arguments,
)

_PROOF = Proof("read", "the signature in the installed source has no such argument")


class ArgumentNotTaken(Rule):
    """A call of transformers, TRL or PEFT has an argument that the installed release does not take.

    ## What happens
    `TypeError: __init__() got an unexpected keyword argument`, when the line is reached: after the
    model has been loaded.

    ## Why
    The libraries rename arguments (`evaluation_strategy` to `eval_strategy`, `tokenizer` to
    `processing_class`), move them (from a trainer to its arguments) or drop them (`load_in_4bit`
    given to `from_pretrained`), and scripts are older. Others are mistyped.

    ## Versions
    The signature is read from the source of what is installed; a script that pins another release,
    itself or in the requirements.txt beside it, is not compared with it.

    ## Fix
    The name that the installed signature has for it, where one is nearly the same or the only one
    of that type; the call that takes it now, where the trainer's arguments do.

    ## Links
    https://github.com/huggingface/transformers/blob/main/MIGRATION_GUIDE_V5.md
    """

    code = "LD523"
    name = "argument-not-taken"
    summary = "A call has an argument that the installed library does not take."
    depth = "static"
    symptoms = (
        Symptom(r"__init__\(\) got an unexpected keyword argument", weight=-1),
        Symptom(
            r"__init__\(\) got an unexpected keyword argument '\w+'",
            "called by the script itself",
            raised_in=r"^(?!.*(?:site|dist)-packages)",
            unless=r"Config\(\*\*",
            weight=2,
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/argument_mistyped.py",
            depth="static",
            why="lora_alpa, which no release has",
        ),
        Example("healthy", "tests/scripts/prepared_first.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for found in unknown_arguments(case.program):
            if not _is_told_by_ld315(case, found):
                yield self._finding(found)

    def _finding(self, found: UnknownArgument) -> Finding:
        installed = f"{found.package} {found.version}"
        return self.finding(
            "error",
            f"{found.callee} of the installed {installed} takes no `{found.name}`: the call raises "
            "TypeError.",
            location=Location("file", found.place.file, found.place.line),
            evidence=(
                Measurement("argument", found.name, str(found.place)),
                Measurement(f"{found.callee} takes", _takes(found), installed),
            ),
            proof=_PROOF,
            fixes=(_fix(found),),
        )


def _is_told_by_ld315(case: Case, found: UnknownArgument) -> bool:
    """Quantization asked for by an argument has a rule of its own, for scripts (not notebooks)."""
    names = ("load_in_4bit", "load_in_8bit")
    return found.callee == "from_pretrained" and found.name in names and case.has("script")


def _takes(found: UnknownArgument) -> str:
    if not found.now:
        return f"no {found.name}"
    return f"no {found.name}; {found.moved_to + ': ' if found.moved_to else ''}{found.now}"


def _fix(found: UnknownArgument) -> Fix:
    if found.moved_to:
        title = f"Give {found.now} to {found.moved_to} instead."
    elif found.now:
        title = f"Write {found.now} instead."
    else:
        title = f"Take out {found.name}, or install the release that takes it."
    safety = "safe" if found.rewrites else "manual"
    return Fix(title, safety, rewrites=found.rewrites)  # type: ignore[arg-type]
