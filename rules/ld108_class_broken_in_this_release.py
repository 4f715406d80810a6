"""LD108: a class of transformers that its own release cannot run."""

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
)
from lora_doctor.rules._missing_attribute import missing_attribute


class ClassBrokenInThisRelease(Rule):
    """The model's class is one of transformers, and uses something that this release of
    transformers no longer has.

    ## What happens
    Every forward raises, with adapters and without, on any input: `'MoeCausalLMOutputWithPast'
    object has no attribute 'image_outputs'`.

    ## Why
    A name in transformers changed, and one of its classes was not updated. Neither the recipe nor
    the batch is the cause, and no change of them helps.

    ## Versions
    Llama 4 with images in transformers 5.24, which renamed what the outputs hold; any release can
    have such a class.

    ## Fix
    Another release of transformers. Which one can run the class is not known here; try the release
    before first.

    ## Links
    https://github.com/huggingface/transformers/issues
    """

    code = "LD108"
    name = "class-broken-in-this-release"
    summary = "A class of transformers uses something that its own release does not have."
    depth = "tiny"
    symptoms = (
        Symptom(
            r"'\w+OutputWith\w+' object has no attribute '\w+'",
            raised_in=r"transformers[\\/]models[\\/]",
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama4",
            requires={"transformers": "==5.24.0"},
            why="its language model gives other outputs than it asks for",
        ),
        Example("healthy", "arch:llama"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = missing_attribute(case)
        if seen is None:
            _ = case.verification  # raises where nothing was run
            return
        if not seen.in_transformers:
            return  # code of a repository: LD104
        version = case.environment.version("transformers") or ""
        yield self.finding(
            "error",
            f"The class does not run in transformers {version}: {seen.file}:{seen.line} uses "
            f"{seen.asked}, which this release does not have.",
            location=Location("environment", f"transformers {version}"),
            evidence=(
                Measurement("forward without adapters", seen.message, f"{seen.depth} model"),
                Measurement("asked for", seen.asked, f"{seen.file}:{seen.line}"),
            ),
            proof=Proof("executed", "the class was run without adapters and raised this"),
            fixes=(
                Fix(
                    "Install another release of transformers: pip install "
                    f"'transformers<{version}' installs the one before.",
                    "manual",
                ),
            ),
            explains=("forward", "loss-falls"),
        )
