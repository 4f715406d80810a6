"""What is read of the reward functions that a script gives its trainer."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest

from lora_doctor.dry_run.acts.rewards import _Seen
from lora_doctor.static.script.reward_code import RewardCode, distance_rewarded, reads_written


def _code(text: str) -> RewardCode:
    (found,) = ast.parse(text).body
    assert isinstance(found, ast.FunctionDef)
    return found


@pytest.mark.parametrize(
    ("body", "distance"),
    [
        ("return [abs(20 - len(text)) for text in completions]", "abs(20 - len(text))"),
        ("return [float((len(c) - 9) ** 2) for c in completions]", "(len(c) - 9) ** 2"),
        (
            "out = []\n for c in completions:\n  out.append(abs(20 - len(c)))\n return out",
            "abs(20 - len(c))",
        ),
        (
            "out = []\n for c in completions: out.append(abs(2-len(c)))\n out.sort()\n return out",
            "",
        ),
        ("return [-abs(20 - len(text)) for text in completions]", ""),
        ("return [1 / (1 + abs(20 - len(text))) for text in completions]", ""),
        ("return [abs(score(text)) for text in completions]", ""),
        (
            "mean = sum(map(len, completions)) / 4\n"
            " return [abs(len(c) - mean) for c in completions]",
            "",
        ),
        (
            "sizes = [len(c) for c in completions]\n top = max(sizes)\n"
            " return [(top - n) ** 2 for n in sizes]",
            "",
        ),
        (
            "return [abs(len(c) - n) for c, n in zip(completions, kwargs['size'])]",
            "abs(len(c) - n)",
        ),
        ("return [1.0 - abs(20 - len(text)) / 20 for text in completions]", ""),
        ("if not kwargs:\n  return [0.0]\n return [abs(2 - len(c)) for c in completions]", ""),
    ],
)
def test_a_distance_as_it_is_is_told_from_one_that_is_turned_around(
    body: str, distance: str
) -> None:
    """What falls with the distance is a reward."""
    assert distance_rewarded(_code(f"def reward(completions, **kwargs):\n {body}")) == distance


@pytest.mark.parametrize(
    ("body", "reads"),
    [
        ("return [0.0] * len(completions)", False),
        ("return [1.0 for _ in completions]", False),
        ("return [float(len(p)) for p, _ in zip(prompts, completions)]", False),
        ("return [float('7' in c) for c in completions]", True),
        ("return score(**kwargs)", True),
    ],
)
def test_counting_the_completions_is_not_reading_them(body: str, reads: bool) -> None:
    """Such a function gives all completions of a prompt the same reward."""
    code = _code(f"def reward(prompts, completions, **kwargs):\n {body}")
    assert reads_written(code) is reads


@pytest.mark.parametrize(
    ("rewards", "alike", "between"),
    [
        ([[None, float("nan")], [1.0, 2.0]], 1, (1.0, 2.0)),
        ([[None, None], [None, None]], 2, (0.0, 0.0)),
        ([[None, 1.0], [1.0, 2.0]], 0, (1.0, 2.0)),
    ],
)
def test_no_reward_for_any_completion_is_the_same_for_all(
    rewards: list[list[float | None]], alike: int, between: tuple[float, float]
) -> None:
    """A trainer of TRL adds up the functions that give one, and 0 where none does."""
    told: list[dict[str, Any]] = []
    journal = SimpleNamespace(tell=lambda kind, **values: told.append({"kind": kind, **values}))
    acting: Any = SimpleNamespace(evaluations=0, journal=journal)
    given = [one for prompt in rewards for one in prompt]
    function = _Seen(acting, [{"name": "own"}]).around(lambda **_: given, 0)
    function(prompts=["a", "a", "b", "b"], completions=["1", "2", "3", "4"])
    assert [one["kind"] for one in told] == ["rewards"]
    assert (told[0]["alike"], (told[0]["least"], told[0]["most"])) == (alike, between)
