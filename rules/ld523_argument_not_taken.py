"""LD523: an argument that the installed release of a library does not accept."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Place,
    Proof,
    Rule,
    Symptom,
    UnknownArgument,
    unknown_arguments,
)

_PROOF = Proof("read", "the signature in the installed source has no such argument")

#: A constructor of these libraries, by the names that their classes have; other programs have
#: constructors as well. Before Python 3.10 the message has no class.
_INIT = (
    r"(?:(?<![\w.>])|\b\w*(?:Config|Trainer|Arguments|Collator\w*|For[A-Z]\w+|Accelerator|Peft\w+"
    r"|Script)\.)__init__\(\)"
)


class ArgumentNotTaken(Rule):
    """A call of transformers, TRL or PEFT has an argument that the installed release does not
    accept.

    ## What happens
    `TypeError: __init__() got an unexpected keyword argument`, when that line runs, often after the
    model has been loaded.

    ## Why
    The libraries rename arguments (`evaluation_strategy` to `eval_strategy`, `tokenizer` to
    `processing_class`), move them (from a trainer to its arguments) or remove them (`load_in_4bit`
    of `from_pretrained`), and scripts written for older releases still use them. Others are
    mistyped.

    ## Versions
    The signature of the class, function or method is read from the source of the installed release.
    What `from_pretrained` of a model does not take itself has to be a name of its config.
    If the script, or a requirements, project or lock file, conda environment or Dockerfile next to
    it, asks for another release, a table counts instead, which was made of the sources of the
    releases: an argument is reported if other releases accept it and the pinned one does not.

    ## Fix
    The argument's name in the installed signature, if one is nearly the same or the only one of
    that type; or the call that accepts it now, such as the trainer's arguments.

    ## Links
    https://github.com/huggingface/transformers/blob/main/MIGRATION_GUIDE_V5.md,
    https://github.com/unslothai/unsloth/issues/27, https://github.com/huggingface/trl/issues/282
    """

    code = "LD523"
    name = "argument-not-taken"
    summary = "A call has an argument that the installed library does not accept."
    depth = "static"
    symptoms = (
        Symptom(rf"{_INIT} got an unexpected keyword argument", alone=True, weight=-1),
        Symptom(
            r"(?:get_peft_model|get_\w+_schedule(?:_with_warmup)?)\(\) got an unexpected keyword"
        ),
        Symptom(
            r"__init__\(\) got an unexpected keyword argument",
            "handed on by from_pretrained",
            raised_in=r"transformers[\\/]modeling_utils\.py",
            weight=-1,
        ),
        Symptom(
            rf"{_INIT} got an unexpected keyword argument '(?!load_in_)\w+'",
            "called by the script itself",
            raised_in=r"^(?!.*(?:(?:site|dist)-packages|[\\/](?:peft|transformers|trl)[\\/]))",
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
        Example(
            "broken",
            "tests/scripts/schedule_of_an_earlier_release.py",
            depth="static",
            why="warmup_steps is called num_warmup_steps",
        ),
        Example("healthy", "tests/scripts/prepared_first.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for found in unknown_arguments(case.program):
            if not _is_told_by_ld315(case, found):
                yield self._finding(found)

    def _finding(self, found: UnknownArgument) -> Finding:
        if found.pinned_at is not None:
            return self._of_pin(found, found.pinned_at)
        installed = f"{found.package} {found.version}"
        return self.finding(
            "error",
            f"{found.callee} of the installed {installed} does not accept `{found.name}`: the "
            "call raises TypeError.",
            location=Location("file", found.place.file, found.place.line),
            evidence=(
                Measurement("argument", found.name, str(found.place)),
                Measurement(f"{found.callee} takes", _takes(found), installed),
            ),
            proof=_PROOF,
            fixes=(_fix(found),),
        )

    def _of_pin(self, found: UnknownArgument, pin: Place) -> Finding:
        """Of a release that is not installed here."""
        pinned = f"{found.package}{found.version}"
        return self.finding(
            "error",
            f"{found.callee} of {pinned}, which {pin} asks for, does not accept `{found.name}`: "
            "the call raises TypeError there.",
            location=Location("file", found.place.file, found.place.line),
            evidence=(
                Measurement("argument", found.name, str(found.place)),
                Measurement("pinned", pinned, str(pin)),
                Measurement(f"{found.callee} takes", _takes(found),
                            f"source of {found.package} {' and '.join(_ends(found.read))}"),
            ),
            proof=Proof("read", "a table made of the sources of the releases; the pinned one is "
                                "not installed here and was not executed"),
            fixes=(_fix(found),),
        )  # fmt: skip


def _ends(releases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((releases[0], releases[-1])))


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
        title = f"Pass {found.now} to {found.moved_to} instead."
    elif found.now:
        title = f"Write {found.now} instead."
    else:
        title = f"Remove {found.name}, or install a release that accepts it."
    safety = "safe" if found.rewrites else "manual"
    return Fix(title, safety, rewrites=found.rewrites)  # type: ignore[arg-type]
