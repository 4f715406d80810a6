"""LD932: the trainer calls a reward function with other arguments than it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

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
    quoted,
    refused_rewards,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import RefusedReward

_PROOF = Proof("read", "the call in the source of the installed TRL, and the function's parameters")


class RewardFunctionRefused(Rule):
    """GRPO's trainer calls a reward function with other arguments than the function takes.

    ## What happens
    `TypeError: reward() got an unexpected keyword argument 'completion_ids'`, or `missing 1
    required positional argument: 'solutions'`, in the first step: after the model was loaded and
    the first completions were generated.

    ## Why
    The trainer passes the prompts, the completions and every other column of the training set by
    name, and each release passes more. A function without `**kwargs` fails on the first name that
    it does not have; a parameter that is no column of the set is filled by nobody.

    The call is read in the source of the installed TRL. Columns are known where the script writes
    its rows out.

    ## Versions
    TRL 0.14 and later; `completion_ids` is passed since 0.16.

    ## Fix
    By hand: `**kwargs` at the end of the parameters, and the name of the column.

    ## Links
    https://github.com/huggingface/trl/issues/4939, https://github.com/huggingface/open-r1/issues/384,
    https://huggingface.co/docs/trl/grpo_trainer
    """

    code = "LD932"
    name = "reward-function-refused"
    summary = "The trainer calls a reward function with other arguments than it takes."
    depth = "static"
    symptoms = (
        Symptom(
            r"\bTypeError: \w*reward\w*\(\) (?:got an unexpected keyword argument|missing \d+ "
            r"required positional argument)"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/reward_without_its_column.py",
            depth="static",
            why="the set has no column of this name",
            requires={"trl": ">=0.16"},
        ),
        Example("healthy", "tests/scripts/reward_of_a_column.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run called the functions
        for found in refused_rewards(case.program):
            function = found.function
            yield self.finding(
                "error",
                f"{found.trainer} calls {function.name} {_what(found)}: TypeError in the first "
                "step.",
                location=Location("file", function.place.file, function.place.line),
                evidence=tuple(_evidence(found)),
                proof=_PROOF,
                fixes=(Fix(_title(found), "manual"),),
            )


def _what(found: RefusedReward) -> str:
    if found.not_taken:
        return f"with {quoted(found.not_taken)}, which the function does not take"
    return f"without {quoted(found.unfilled)}, which is no column of the training set"


def _title(found: RefusedReward) -> str:
    if found.not_taken:
        return f"End the parameters of {found.function.name} with **kwargs."
    return "Name the parameter as its column, or give the training set this column."


def _evidence(found: RefusedReward) -> Iterator[Measurement]:
    passed = ", ".join((*found.call.names, *(("the other columns",) if found.columns else ())))
    yield Measurement("passed by name", passed, found.call.place)
    if found.columns:
        yield Measurement("columns", ", ".join(found.columns), str(found.trainer_place))
