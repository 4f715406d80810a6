"""LD938: all completions of a prompt get the same reward, whatever the model writes."""

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
    blind_rewards,
)
from lora_doctor.rules._dry_run_script import REWARDED
from lora_doctor.rules._training_signal import at, signal

if TYPE_CHECKING:
    from lora_doctor.rule_api import Rewards

_SOURCE = "the reward functions, in the first steps of the run"


class CompletionsRewardedAlike(Rule):
    """With GRPO and its kind, all completions of a prompt get the same reward, because no reward
    function reads them, or because they are all the same.

    ## What happens
    No error is raised. The advantage of each completion is its reward minus the mean of its group:
    all are 0, the loss and the gradients are 0, `reward_std` and `frac_reward_zero_std` in the log
    are 0 and 1. Nothing is learned.

    ## Why
    The function returns a constant, or depends on the prompt or on other columns only; or sampling
    is deterministic, so that a group consists of copies.

    A dry run calls the functions on what the small model writes, which is noise: many correct
    functions give noise the same reward. So it also has to be seen that the code of the functions
    never reads a completion, or that the completions of each group are equal. In a script that is
    only read, functions are found none of which reads a completion.

    ## Versions
    All.

    ## Fix
    A reward that depends on the completion; sampling with a temperature above 0.

    ## Links
    https://huggingface.co/docs/trl/grpo_trainer
    """

    code = "LD938"
    name = "completions-rewarded-alike"
    summary = "All completions of a prompt get the same reward, whatever the model writes."
    depth = "static"
    symptoms = (
        # Each step that is logged; a healthy run has such steps among others.
        Symptom(
            r"'?frac_reward_zero_std'?: '?1(?:\.0+)?(?![.\d])",
            "TRL",
            context=r"'?grad_norm'?: '?0(?:\.0+)?(?![.\d])",
            unless=r"'?frac_reward_zero_std'?: '?0",
        ),
    )
    descriptions = (
        Symptom(r"\bfrac_reward_zero_std\b.{0,20}\b1\b|\breward_std\b.{0,20}\b0(?:\.0+)?\b"),
        Symptom(r"\badvantages?\b.{0,20}\b(?:all|always)\b.{0,10}\b(?:0|zero)\b"),
    )
    told_as = ("In GRPO reward and loss are zero, all completions get the same reward.",)
    examples = (
        Example(
            "broken",
            "",
            script=REWARDED.replace("REWARD", "1.0"),
            why="a constant for each completion",
        ),
        Example(
            "healthy",
            "",
            script=REWARDED.replace("REWARD", "float(completion.count('7'))"),
        ),
        Example(
            "broken",
            "tests/scripts/reward_of_nothing_written.py",
            depth="static",
            why="the same for every completion",
        ),
        Example("healthy", "tests/scripts/reward_of_a_column.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("dry_run"):
            yield from self._of_script(case)
            return
        found = signal(case)
        rewards, gradients = found.rewards, found.gradients
        if rewards is None or rewards.alike < rewards.prompts:
            return
        if gradients is not None and (gradients.largest > 0 or gradients.not_finite):
            return  # another term of the loss trains
        why = _why(rewards)
        if not why:
            return
        yield self.finding(
            "error",
            f"All completions of a prompt get the same reward: {why}. Every advantage is 0, and "
            "nothing is learned.",
            location=at(rewards.file, rewards.line, "reward functions"),
            evidence=(
                Measurement("prompts with several completions", rewards.prompts, _SOURCE),
                Measurement("with one reward for all", rewards.alike, _SOURCE),
                Measurement("with one completion for all", rewards.same_completions, _SOURCE),
                Measurement("rewards", f"{rewards.least:g} to {rewards.most:g}", _SOURCE),
                Measurement("functions", ", ".join(rewards.functions), _SOURCE),
            ),
            proof=Proof("executed", _SOURCE),
            fixes=(
                Fix("Let the reward depend on what the completion says.", "manual")
                if rewards.blind
                else Fix("Sample the completions with a temperature above 0.", "manual"),
            ),
        )

    def _of_script(self, case: Case) -> Iterator[Finding]:
        """Functions of a script that was only read."""
        functions = blind_rewards(case.program)
        if not functions:
            return
        names = ", ".join(one.name for one in functions)
        first = functions[0].place
        yield self.finding(
            "error",
            "All completions of a prompt get the same reward: "
            f"{_never_read(names, len(functions))}. Every advantage is 0, and nothing is learned.",
            location=Location("file", first.file, first.line),
            evidence=(Measurement("functions", names, "their code"),),
            proof=Proof("read", "the code of the functions"),
            fixes=(Fix("Let the reward depend on what the completion says.", "manual"),),
        )


def _why(rewards: Rewards) -> str:
    if len(rewards.blind) == len(rewards.functions):
        return _never_read(", ".join(rewards.blind), len(rewards.blind))
    if rewards.same_completions == rewards.prompts:
        return "they are all the same, although several are sampled"
    return ""


def _never_read(names: str, number: int) -> str:
    return f"{names} never read{'s' if number == 1 else ''} them"
