"""LD524: the training arguments class, or the framework's parser, rejects the values."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Refusal,
    Rule,
    SetUp,
    Symptom,
    made_arguments,
    metrics_not_computed,
    written_values,
)
from lora_doctor.rules._set_up import located, remarks


class ArgumentsRefused(Rule):
    """The training arguments class, or the framework's parser, rejects the values.

    ## What happens
    The run stops with an error from that class, often after the model was loaded: `At most one of
    fp16 and bf16 can be True`, `--load_best_model_at_end requires the save and eval strategy to
    match`, or a value that is not among the choices.

    ## Why
    Some arguments exclude or require each other, and the class checks them when it is created.
    lora-doctor creates the installed class with the values of the script if all of them are known.
    A framework's file goes through that framework's own parser; if it is not installed, the
    Trainer's arguments in the file go through the parser of transformers.

    Callbacks of transformers that the trainer is given are asked as well: `EarlyStoppingCallback`
    raises AssertionError when training begins without evaluations, or without a metric.

    ## Versions
    What the installed release rejects. Errors about this machine (no GPU), about the number of
    processes or about a missing package are not reported.

    ## Fix
    By hand: the message says which values conflict.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/trainer
    """

    code = "LD524"
    name = "arguments-refused"
    summary = "The training arguments class, or the framework's parser, rejects the values."
    depth = "meta"
    symptoms = (
        Symptom(
            r"\bValueError: (?!Your setup|FP16 Mixed|--tf32)\S",
            raised_in=r"transformers[\\/]training_args\w*\.py|trl[\\/]trainer[\\/]\w+_config\.py",
        ),
        Symptom(
            r"\bValueError: (?!Some specified arguments)\S",
            raised_in=r"(?:llamafactory|llmtuner)[\\/]hparams|swift[\\/](?:llm[\\/])?arguments?[\\/]",
            weight=-1,
        ),
        Symptom(r"--load_best_model_at_end requires the (?:save|saving)"),
        Symptom(r"\bValueError: --(?!tf32)\w+ (?:must be|can only be set when|requires)\b"),
        Symptom(
            r"(?:generation_batch_size|batch size) \([^()]{1,60}\) must be (?:evenly )?divisible "
            r"by (?:num_generations|the (?:global batch size|number of generations))"
            r"|(?:GRPO|RLOO) requires at least 2 generations per prompt"
            r"|'generation_batch_size' and 'steps_per_generation' can not be both",
            "TRL",
            alone=True,
        ),
        Symptom(
            r"EarlyStoppingCallback requires (?:metric_for_best_model|load_best|IntervalStrategy)"
        ),
        Symptom(r"You can't use 8 bit and 4 bit precision at the same time", "TRL"),
        Symptom(r"At most one of fp16 and bf16 can be True"),
        Symptom(r"requires either non-zero --eval_steps|requires non-zero --logging_steps"),
        Symptom(r"lr_scheduler_type \w+ requires an eval strategy"),
        Symptom(r"is not a valid \w+, please select one of \["),
        # HfArgumentParser names both spellings of an option.
        Symptom(
            r"argument --\w+/--[\w-]+: (?:invalid|expected)\b"
            r"|\b(?:llamafactory-cli|trl|swift)\b.{0,40}error: argument --\S+: "
            r"(?:invalid|expected)\b"
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/best_model_without_evaluation.py",
            requires={"transformers": ">=4.46"},  # Phi-3, and eval_strategy in the healthy one
            depth="meta",
            why="save and evaluation strategies differ",
        ),
        Example(
            "broken",
            "tests/scripts/stopped_early_without_metric.py",
            requires={"transformers": ">=4.46"},
            depth="meta",
            why="EarlyStoppingCallback needs evaluations and a metric",
        ),
        Example(
            "healthy",
            "tests/scripts/best_model_evaluated.py",
            requires={"transformers": ">=4.46"},
            depth="meta",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run created them itself; LD002 reports what it raised
        for refusal in case.refused_arguments.refusals:
            if _is_reported_by_another(case, refusal):
                continue
            if refusal.by.endswith("Callback") and any(metrics_not_computed(case.program)):
                continue  # LD587
            yield self.finding(
                "error",
                f"{refusal.by} rejects these values: {refusal.message}",
                location=_location(case, refusal),
                evidence=(
                    Measurement(refusal.by, f"{refusal.kind}: {refusal.message}", refusal.release),
                ),
                proof=Proof("executed", "the arguments were created by their own class"),
                fixes=(Fix("Change the values as the message says.", "manual"),),
            )


def _is_reported_by_another(case: Case, refusal: Refusal) -> bool:
    """LD533 knows which entries of a set-up do not go together, LD223 which value of a call is of
    another type."""
    if refusal.number < 0:
        return any(True for _ in remarks(case, "refused"))
    name = made_arguments(case.program)[refusal.number].name
    values = written_values(case) if case.has("misused_values") else []
    misused = case.misused_values.found if values else ()
    return any(values[one.number].name == name and one.when == "making" for one in misused)


def _location(case: Case, refusal: Refusal) -> Location:
    """The call; in a set-up, the entry that the message mentions first."""
    if refusal.number >= 0:
        place = made_arguments(case.program)[refusal.number].place
        return Location("file", place.file, place.line)
    name = _named(case.set_up, refusal.message)
    if name is not None:
        return located(case.set_up, name)
    files = case.set_up.files
    return Location("file", files[0] if files else case.set_up.format)


def _named(set_up: SetUp, message: str) -> str | None:
    """The entry that a message is about: the first one it names, else one whose value it quotes,
    else one with the same prefix (``eval_strategy`` if it asks for an ``eval_dataset``)."""
    words = re.findall(r"\w+", message)
    named = [word for word in words if word in set_up.places]
    quoted = [name for name, value in set_up.entries.items()
              if isinstance(value, str) and len(value) > 2 and value in words]  # fmt: skip
    families = {word.partition("_")[0] for word in words if "_" in word}
    alike = [name for name in set_up.places if "_" in name and name.partition("_")[0] in families]
    return next(iter((*named, *quoted, *alike)), None)
