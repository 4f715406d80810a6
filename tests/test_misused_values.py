"""Values that the libraries take without a word and then fail with."""

from __future__ import annotations

from typing import Any

from lora_doctor.evidence.misused_values import gather

_ARGUMENTS, _LORA = "transformers.TrainingArguments", "peft.LoraConfig"


def _asked(*values: tuple[str, str, Any]) -> list[tuple[int, str, str]]:
    given = [
        {"name": name, "key": key, "value": value, "beside": {}, "impossible": key == "r"}
        for name, key, value in values
    ]
    found = gather({}, {}, given)["found"]
    return [(one["number"], one["declared"], one["when"]) for one in found]


def test_what_is_reckoned_with_fails_as_a_text() -> None:
    """Dataclasses check no types: the error comes where the number is needed."""
    assert _asked(
        (_ARGUMENTS, "learning_rate", "2e-4"),
        (_ARGUMENTS, "max_grad_norm", "1.0"),
        (_LORA, "lora_dropout", "0.1"),
        (_LORA, "r", 0),
    ) == [
        (0, "float", "training"),
        (1, "float", "training"),
        (2, "float", "adding the adapter"),
        (3, "", "adding the adapter"),
    ]


def test_what_works_all_the_same_is_not_told() -> None:
    """A whole number is a float to every library, and a text that is not empty is true."""
    assert not _asked(
        (_ARGUMENTS, "weight_decay", 0),
        (_ARGUMENTS, "logging_steps", 5),
        (_ARGUMENTS, "bf16", "true"),
        (_ARGUMENTS, "save_total_limit", None),
        (_LORA, "lora_alpha", 16.0),
        (_LORA, "target_modules", "q_proj"),
    )
