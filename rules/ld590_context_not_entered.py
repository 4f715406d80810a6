"""LD590: a context manager is called on a line of its own, and nothing enters it."""

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
    contexts_not_entered,
)


class ContextNotEntered(Rule):
    """`model.disable_adapter()` or `accelerator.accumulate(model)` stands on a line of its own.

    ## What happens
    Nothing, and no error is raised: the adapters stay active, so that the logits of the "reference
    model" are those of the trained one; gradients are not accumulated.

    ## Why
    These methods return a context manager, which acts only where `with` enters it. Which methods do
    is read in the source of the installed release.

    ## Versions
    All. In transformers `model.disable_adapters()`, with an s, is a plain method that acts at once.

    ## Fix
    By hand: `with model.disable_adapter():` around the lines that are meant.

    ## Links
    https://github.com/huggingface/peft/issues/912
    """

    code = "LD590"
    name = "context-not-entered"
    summary = "A context manager is called and not entered, and has no effect."
    depth = "static"
    descriptions = (
        Symptom(r"\bdisable_adapter\(\).{0,60}\b(?:no effect|does nothing|still|same|identical)\b"),
    )
    told_as = ("disable_adapter() does nothing, and the outputs stay those of the adapter.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/adapter_disabled_without_with.py",
            depth="static",
            why="disable_adapter is a context manager",
        ),
        Example("healthy", "tests/scripts/adapter_disabled.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for found in contexts_not_entered(case.program):
            yield self.finding(
                "error",
                f"`{found.code}` returns a context manager, and no `with` enters it: the line has "
                "no effect.",
                location=Location("file", found.place.file, found.place.line),
                evidence=(Measurement(found.code, "a context manager", "installed source"),),
                proof=Proof("read", "the installed source of the method, and the script"),
                fixes=(Fix(f"Write `with …{found.code}(…):` around the lines.", "manual"),),
            )
