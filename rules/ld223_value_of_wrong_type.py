"""LD223: a setting is a text where a number is reckoned with, or a number that cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    written_values,
)

if TYPE_CHECKING:
    from lora_doctor.rule_api import MisusedValue, WrittenValue

#: Frames of what computes with the settings.
_READERS = (
    r"transformers[\\/](?:trainer\w*|training_args)\.py|torch[\\/]optim[\\/]"
    r"|torch[\\/]utils[\\/]data[\\/]sampler|peft[\\/]tuners[\\/]"
)


class ValueOfWrongType(Rule):
    """A setting is written as a text, such as `learning_rate="2e-4"`, where a number is needed, or
    it is a number that cannot be.

    ## What happens
    `LoraConfig` and `TrainingArguments` take it. The error comes later and does not name the
    setting: `'<=' not supported between instances of 'float' and 'str'` out of AdamW (a
    `learning_rate`), `must be real number, not str` (`num_train_epochs`), `batch_size should be a
    positive integer value, but got batch_size=2` (a batch size in quotes), `unsupported operand
    type(s) for /: 'str' and 'int'` out of PEFT (`lora_alpha`).

    ## Why
    Both are dataclasses, which check no types. Only a command line is converted
    (`HfArgumentParser`, `argparse`). A text comes from quotes, from an environment variable, or
    from YAML: version 1.1, which PyYAML reads, takes `2e-4` for a text, as a number needs a point
    there (`2.0e-4`).

    ## Versions
    Executed with the installed releases: the value alone, in two steps of training one layer, and
    the same without it. What works all the same is not reported.

    ## Fix
    A number that was written as a text is written as a number. Other values are changed by hand.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments
    https://yaml.org/type/float.html
    """

    code = "LD223"
    name = "value-of-wrong-type"
    summary = "A setting is a text where a number is needed, or an impossible number."
    depth = "static"
    symptoms = (
        Symptom(
            r"TypeError: '[<>]=?' not supported between instances of '(?:float|int|str)' and "
            r"'(?:str|int|float)'",
            raised_in=_READERS,
        ),
        Symptom(r"TypeError: must be real number, not str", raised_in=_READERS),
        Symptom(
            r"TypeError: unsupported operand type\(s\) for //?: '(?:str|int)' and '(?:int|str)'",
            raised_in=_READERS,
        ),
        Symptom(r"batch_size should be a positive integer value, but got batch_size="),
        Symptom(r"_fused_adamw_\(\) received an invalid combination of arguments .{0,300}\bstr\b"),
    )
    told_as = ("The learning rate from a YAML file is a string, and the optimizer fails.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/learning_rate_in_quotes.py",
            requires={"transformers": ">=4.41"},
            depth="static",
            why="AdamW compares a text with a number",
        ),
        Example(
            "healthy",
            "tests/scripts/learning_rate_as_a_number.py",
            requires={"transformers": ">=4.41"},
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        values = written_values(case)
        if case.goes_to("meta"):
            for misused in case.misused_values.found:
                yield self._executed(values[misused.number], misused)
            return
        for value in values:
            if value.impossible:
                yield self._read(value)

    def _executed(self, value: WrittenValue, misused: MisusedValue) -> Finding:
        kind = type(value.value).__name__
        type_ = f", a {kind} where {misused.by} declares {misused.declared}"
        raised = f"{misused.kind}: {misused.message}" if misused.kind else ""
        outcome = f"{misused.when} fails with {raised}" if raised else "no step is trained"
        return self.finding(
            "error",
            f"{value.key} is {value.value!r:.60}{type_ if misused.declared else ''}: {outcome}",
            location=_location(value),
            evidence=(
                Measurement(
                    f"with {value.key}={value.value!r:.60}", raised or "no step", misused.release
                ),
                Measurement(f"without {value.key}", "trains", misused.release),
            ),
            proof=Proof("executed", "one layer was trained with this value alone, and without it"),
            fixes=(_fix(value),),
        )

    def _read(self, value: WrittenValue) -> Finding:
        return self.finding(
            "warning",
            f"{value.key} may fail: {value.name.rpartition('.')[2]} cannot train with "
            f"{value.value!r:.60}.",
            location=_location(value),
            evidence=(
                Measurement(value.key, repr(value.value)[:60], str(value.place or "recipe")),
            ),
            proof=Proof("inferred", "the value was read in the file"),
            fixes=(_fix(value),),
        )


def _location(value: WrittenValue) -> Location:
    if value.place is None:
        return Location("recipe", value.recipe_key or value.key)
    return Location("file", value.place.file, value.place.line)


def _fix(value: WrittenValue) -> Fix:
    """The number that the text says, or what a person has to do."""
    number = _number(value.value)
    if number is None:
        return Fix(f"Write a number that {value.key} can have.", "manual")
    if not value.recipe_key:
        return Fix(f"Write {value.key} as a number: {number!r}.", "manual")
    return Fix("Write the number without quotes.", "safe", (Edit(value.recipe_key, number),))


def _number(value: Any) -> float | int | None:
    """The number that a text says; ``None`` where it says none."""
    if not isinstance(value, str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and value.strip().lstrip("-").isdigit() else number
