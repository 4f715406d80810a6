"""LD583: the learning rate is no learning rate for Adam."""

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
    brings_optimizer,
)

#: Adam moves each weight by about the learning rate at each step, and the weights of an adapter
#: begin at 0.02 or so.
_DIVERGES = 1.0


class LearningRateOutOfRange(Rule):
    """The learning rate is negative, or so large that Adam diverges.

    ## What happens
    A negative learning rate stops the run: `ValueError: Invalid learning rate`. With one of 1 or
    more the loss becomes NaN, or the model useless, within a few steps.

    ## Why
    Usually the sign of the exponent is missing: `2e4` instead of `2e-4`. Adam moves each weight by
    about the learning rate at each step, whatever the size of the gradient, and the weights of an
    adapter are in the order of 0.01.

    ## Versions
    All. Optimizers that estimate the rate themselves (Prodigy, D-Adaptation) take 1 as a factor
    and are left alone, as are every optimizer that is not Adam and a script that brings its own.

    ## Fix
    By hand: only you know which rate was meant.

    ## Links
    https://pytorch.org/docs/stable/generated/torch.optim.AdamW.html
    """

    code = "LD583"
    name = "learning-rate-out-of-range"
    summary = "The learning rate is negative, or so large that Adam diverges."
    depth = "static"
    symptoms = (Symptom(r"ValueError: Invalid learning rate: -?[\d.e+-]+"),)
    told_as = (
        "The loss diverges because the learning rate is too high.",
        "The loss explodes.",
    )
    examples = (
        Example("broken", "arch:llama", {"learning_rate": 20000.0}, depth="static"),
        Example("healthy", "arch:llama", {"learning_rate": 2e-4}, depth="static"),
        Example("healthy", "arch:llama", {"learning_rate": 1.0, "optim": "prodigy"},
                depth="static", why="Prodigy takes a factor"),
    )  # fmt: skip

    def check(self, case: Case) -> Iterator[Finding]:
        rate = case.recipe.get("learning_rate")
        if not isinstance(rate, (int, float)) or not (rate < 0 or rate >= _DIVERGES):
            return
        if case.has("program") and brings_optimizer(case.program):
            return
        optimizer, source = _optimizer(case)
        if rate > 0 and not optimizer.lower().replace("paged", "").lstrip("_").startswith("adam"):
            return
        does = "torch refuses it" if rate < 0 else "Adam diverges with it"
        yield self.finding(
            "error",
            f"The learning rate is {rate:g}; {does}.",
            location=Location("recipe", "learning_rate"),
            evidence=(
                Measurement("learning_rate", f"{rate:g}",
                            str(case.recipe.places.get("learning_rate", "recipe"))),
                Measurement("optimizer", optimizer, source),
            ),
            proof=Proof("inferred", "Adam moves each weight by about the learning rate per step"),
            fixes=(Fix("Set the intended learning rate, such as 2e-4.", "manual"),),
        )  # fmt: skip


def _optimizer(case: Case) -> tuple[str, str]:
    """Its name, and where that is from."""
    ran = case.dry_run.ran.get("optimizer") if case.has("dry_run") else None
    if ran:
        return ran, "the user's command, dry-run"
    asked = case.recipe.get("optim")
    if asked is None:
        return "adamw", "the Trainer's default"
    return str(getattr(asked, "value", asked)), "recipe"
