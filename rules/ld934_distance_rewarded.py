"""LD934: a reward function returns a distance, and the trainer makes it large."""

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
    distances_rewarded,
)

_PROOF = Proof("read", "the only value that the function returns for a completion")


class DistanceRewarded(Rule):
    """A reward function returns how far a completion is from what is meant, and that is maximized.

    ## What happens
    No error is raised. The reward rises, and the model learns to be as far as possible from the
    target: `abs(20 - len(completion))` as the reward gives ever longer completions.

    ## Why
    A loss is minimized, a reward is maximized. A distance is a loss: its negative is the reward.

    Reported is a function all of whose rewards are `abs(a - b)` or `(a - b) ** 2` as they are,
    given to a trainer without `reward_weights`; not where both are computed of the completions:
    that rewards them for being different.

    ## Versions
    All. The documentation of TRL's GRPO trainer had this example until 0.15.

    ## Fix
    By hand: return the negative distance. It changes the training.

    ## Links
    https://github.com/huggingface/trl/issues/2771
    """

    code = "LD934"
    name = "distance-rewarded"
    summary = "A reward function returns a distance, and the trainer makes it large."
    depth = "static"
    descriptions = (
        Symptom(r"\breward\b.{0,60}\b(?:wrong|opposite|inverted|negative) (?:sign|direction)\b"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/reward_is_a_distance.py",
            depth="static",
            why="the reward grows with the distance from 20 characters",
        ),
        Example("healthy", "tests/scripts/reward_of_a_column.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("program"):
            return
        for function, distance in distances_rewarded(case.program):
            yield self.finding(
                "warning",
                f"{function.name} returns {distance} as the reward, which is maximized: the model "
                "learns to make the distance large.",
                location=Location("file", function.place.file, function.place.line),
                evidence=(Measurement("reward of a completion", distance, str(function.place)),),
                proof=_PROOF,
                fixes=(Fix(f"Return -{distance}.", "manual"),),
            )
