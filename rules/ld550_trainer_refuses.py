"""LD550: the trainer's class rejects the adapter, the model or the arguments that it is given."""

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
    adapted_by_the_trainer_too,
    made_trainer,
)
from lora_doctor.static.installed.fused_losses import trl_refuses_head

if TYPE_CHECKING:
    from lora_doctor.rule_api import AskedTrainer, Place


class TrainerRefuses(Rule):
    """The trainer's class rejects what it is given together: the adapter, the model, its arguments.

    ## What happens
    The script stops when the trainer is created, after the model was loaded: `sync_ref_model=True`
    with an adapter, `formatting_func` with `completion_only_loss`, a `quantization_config` for a
    model that is already loaded, the best checkpoint by a metric that is not named.

    ## Why
    Each value is valid by itself, so that the arguments class accepts it; only the trainer sees
    them together. lora-doctor creates the installed class on a tiny model of the same class, with
    the script's arguments and adapter and with rows of each kind that the trainer takes. What it
    raises for all of them, and not with its own defaults, is reported.

    Rows that the script writes out, or reads from a JSON file next to it, are tried as well, with
    the tokenizer of the model: columns that the trainer does not find, labels of another type,
    turns that the chat template rejects.

    ## Versions
    What the installed release rejects. Errors about this machine or a missing package are not
    reported.

    ## Fix
    By hand: the message says which values conflict.

    ## Links
    https://huggingface.co/docs/trl/peft_integration
    """

    code = "LD550"
    name = "trainer-refuses"
    summary = "The trainer's class rejects the adapter, the model or its arguments."
    depth = "tiny"
    symptoms = (
        Symptom(r"You passed `?sync_ref_model=True`?"),
        Symptom(r"You passed both a `?(?:ref_)?model`? and a `?peft_config`?"),
        Symptom(r"`?model`? and `?ref_model`? cannot be the same object"),
        Symptom(
            r"You passed (?:an? )?`?(?:packing=False|(?:a )?DataCollatorForCompletionOnlyLM)`? "
            r"to the SFTTrainer",
            "TRL before 0.13",
        ),
        Symptom(r"A formatting function was provided while `?completion_only_loss"),
        Symptom(
            r"You passed `?\w*kwargs`? to (?:the )?`?\w+(?:/\w+)?`?[,.] ?(?:[Bb]ut )?.{0,12}model "
            r"is already"
            r"|You passed `quantization_config` to the trainer, but your model is already",
            "TRL",
        ),
        Symptom(r"Invalid `(?:torch_)?dtype` passed to (?:the )?`?\w+Config", "TRL"),
        Symptom(
            r"(?:tokenizer|processing_class) must be specified (?:to tokenize|when using)", "TRL"
        ),
        Symptom(
            r"You cannot use `use_liger_(?:loss|kernel)=True` with Peft"
            r"|[Ll]iger loss is not supported with"
            r"|`cast_lm_head_to_fp32=True` is not supported when the lm_head carries"
            r"|Prompt-learning PEFT methods .{0,60}? are not supported",
            "TRL",
        ),
        Symptom(
            r"to use the PeftModel, you need to pass a PeftConfig"
            r"|`peft_config` must be a `peft\.Peft",
            "TRL",
        ),
        Symptom(
            r"Number of reward weights \(\d|number of reward processing classes \(\d"
            r"|KTO will not work properly because the KL term"
            r"|max_prompt_length \(\d+\) should be strictly less than max_length",
            "TRL",
        ),
        Symptom(
            r"provide either `dataset_text_field` or `formatting_func`"
            r"|pass a `dataset_text_field` or `formatting_func`",
            "TRL before 0.13",
        ),
        Symptom(
            r"\b(?:ValueError|NotImplementedError): \S|\bTypeError: .{1,60}? must be an? ",
            raised_in=r"trl[\\/]trainer[\\/]\w+_trainer\.py",
            context=r"_trainer\.py\W+line \d+,? in __init__",
            weight=-1,
        ),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/best_without_metric.py",
            requires={"transformers": ">=4.50"},
            why="the best checkpoint is to be saved, and by which metric is not said",
        ),
        Example(
            "healthy",
            "tests/scripts/best_model_evaluated.py",
            requires={"transformers": ">=4.46"},
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run created the trainer itself
        trainer = made_trainer(case.program)
        if trainer is None or any(adapted_by_the_trainer_too(case.program)):
            return  # LD522
        asked = case.refused_trainer
        name = trainer.name.rpartition(".")[2]
        head = trl_refuses_head(name)
        if asked.of_rows:
            yield self._of_rows(trainer.name, trainer.place, trainer.columns, asked)
            return
        if not asked.message or (head is not None and asked.message[:40] in head.message):
            return  # LD512
        yield self.finding(
            "error",
            f"{name} rejects what it is given: {asked.message}",
            location=Location("file", trainer.place.file, trainer.place.line),
            evidence=(
                Measurement(name, f"{asked.kind}: {asked.message}", asked.release),
                Measurement("raised at", asked.raised_at, asked.release),
                Measurement("kinds of rows tried", asked.kinds, "each accepted with its defaults"),
            ),
            proof=Proof("executed", "the trainer was created by its own class on a tiny model"),
            fixes=(Fix("Change the arguments as the message says.", "manual"),),
        )

    def _of_rows(self, kind: str, place: Place, columns: str, asked: AskedTrainer) -> Finding:
        """Rows that the trainer cannot make samples of."""
        name = kind.rpartition(".")[2]
        return self.finding(
            "error",
            f"{name} cannot make samples of the rows: {asked.message}",
            location=Location("file", place.file, place.line),
            evidence=(
                Measurement(name, f"{asked.kind}: {asked.message}", asked.release),
                Measurement("columns of the rows", columns, "the script"),
            ),
            proof=Proof(
                "executed",
                "the trainer was created by its own class on a tiny model, with rows of the "
                "script and the model's tokenizer; with rows of another kind it accepts them",
            ),
            fixes=(
                Fix("Give the rows the columns and types that the trainer asks for.", "manual"),
            ),
        )
