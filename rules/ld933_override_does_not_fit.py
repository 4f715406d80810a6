"""LD933: a method of the script's own Trainer takes less than the installed Trainer gives it."""

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
    narrow_overrides,
    quoted,
)

_PROOF = Proof(
    "read", "the call in the source of the installed Trainer, and the method's parameters"
)


class OverrideDoesNotFit(Rule):
    """A class that inherits `Trainer` replaces a method, and the installed Trainer calls it with an
    argument that it does not take.

    ## What happens
    `TypeError: CustomTrainer.compute_loss() got an unexpected keyword argument
    'num_items_in_batch'`, in the first step.

    ## Why
    Releases of transformers pass more arguments to their own methods than earlier ones, and a
    method that was written for an earlier release has no place for them.

    The call is read in `Trainer.training_step` of the installed transformers. A class with a
    `training_step` of its own is left alone.

    ## Versions
    `compute_loss` gets `num_items_in_batch` since transformers 4.46.

    ## Fix
    By hand: the parameter, with a default (`num_items_in_batch=None`), or `**kwargs`.

    ## Links
    https://github.com/huggingface/transformers/issues/36331,
    https://github.com/zai-org/GLM-4/issues/652
    """

    code = "LD933"
    name = "override-does-not-fit"
    summary = "A method of the script's own Trainer takes less than it is given."
    depth = "static"
    symptoms = (
        Symptom(
            r"\bcompute_loss\(\) got an unexpected keyword argument '\w+'", "transformers >= 4.46"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/loss_of_an_earlier_release.py",
            depth="static",
            why="compute_loss has no num_items_in_batch",
            requires={"transformers": ">=4.48"},
        ),
        Example("healthy", "tests/scripts/loss_of_this_release.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run called it
        for found in narrow_overrides(case.program):
            names = quoted(found.not_taken, 3)
            yield self.finding(
                "error",
                f"The Trainer calls {found.owner}.{found.method} with {names}, which it does not "
                "take: TypeError in the first step.",
                location=Location("file", found.place.file, found.place.line),
                evidence=(Measurement("passed by name", names, found.call.place),),
                proof=_PROOF,
                fixes=(
                    Fix(f"Add {found.not_taken[0]}=None to the parameters of {found.method}.",
                        "manual"),
                ),
            )  # fmt: skip
