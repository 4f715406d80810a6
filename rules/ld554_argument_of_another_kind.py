"""LD554: an argument stands in the place of another one, or is of another kind than is needed."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    MisplacedArgument,
    Proof,
    Rule,
    Symptom,
    misplaced_arguments,
)

_PROOF = Proof("read", "the constructor in the installed source, and the call")


class ArgumentOfAnotherKind(Rule):
    """A call of transformers, TRL or PEFT lacks an argument, has one in the place of another, or
    one of another kind than the installed class or function needs there.

    ## What happens
    `TypeError: got multiple values for argument 'data_collator'`, `cannot unpack non-iterable AdamW
    object`, `can only concatenate list`, `AttributeError: 'TrainingArguments' object has no
    attribute 'beta'`, `get_peft_model() missing 1 required positional argument`, or
    `'T5ForConditionalGeneration' object has no attribute 'pad'` at the first batch.

    ## Why
    Arguments by position are easily out of order: a trainer takes the collator before the training
    set, and a collator the tokenizer before the model. `optimizers` is a pair of optimizer and
    schedule, `callbacks` is a list. Trainers for other methods read arguments of their own:
    `DPOTrainer` needs a `DPOConfig`, `Seq2SeqTrainer` a `Seq2SeqTrainingArguments`.

    A comma behind `TrainingArguments(…)` makes a tuple of them. `generate` takes token ids and no
    text.

    lora-doctor reads the constructor of the installed class: the order and the annotations of its
    parameters, and what it does with each of them whatever the others are.

    ## Versions
    What the installed release does; nothing is reported where the set-up pins another one.

    ## Fix
    By hand: pass it by name, as what the class needs.

    ## Links
    https://github.com/huggingface/transformers/blob/main/src/transformers/trainer.py,
    https://github.com/unslothai/unsloth/issues/957, https://github.com/QwenLM/Qwen-VL/issues/330,
    https://github.com/huggingface/peft/issues/435
    """

    code = "LD554"
    name = "argument-of-another-kind"
    summary = "An argument stands in the place of another one, or is of another kind than needed."
    depth = "static"
    symptoms = (
        Symptom(r"Trainer\.__init__\(\) got multiple values for argument '\w+'"),
        Symptom(
            r"(?:get_peft_model|AutoPeftModel\w*\.from_pretrained|get_\w+_schedule_with_warmup)"
            r"\(\) missing \d required positional argument"
        ),
        Symptom(r"'tuple' object has no attribute '(?:remove_unused_columns|full_determinism)'"),
        Symptom(r"cannot unpack non-iterable \w*(?:Adam|SGD|Adafactor|Lion)\w* object"),
        Symptom(r"can only concatenate list \(not \"(?:\w+Callback|tuple)\"\) to list"),
        Symptom(
            r"'(?:Seq2Seq)?TrainingArguments' object has no attribute "
            r"'(?:generation_config|beta|padding_free|model_init_kwargs|reward_weights)'"
        ),
        Symptom(r"'\w+For(?:CausalLM|ConditionalGeneration)' object has no attribute 'pad'"),
    )
    examples = (
        Example(
            "broken",
            "tests/scripts/optimizer_alone.py",
            depth="static",
            why="optimizers is a pair, and an optimizer alone is none",
        ),
        Example(
            "broken",
            "tests/scripts/collator_of_model.py",
            depth="static",
            why="the collator gets the model as its tokenizer",
        ),
        Example(
            "broken",
            "tests/scripts/config_not_given.py",
            depth="static",
            why="get_peft_model needs the config",
        ),
        Example("healthy", "tests/scripts/arguments_in_place.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run made the call
        for found in misplaced_arguments(case.program):
            yield self.finding(
                "error",
                _message(found),
                location=Location("file", found.place.file, found.place.line),
                evidence=(Measurement("read", found.source, "installed source"),),
                proof=_PROOF,
                fixes=(Fix(_advice(found), "manual"),),
            )


def _message(found: MisplacedArgument) -> str:
    return _MESSAGES[found.why].format(found=found)


def _advice(found: MisplacedArgument) -> str:
    if found.why in ("twice", "many"):
        return "Pass each argument once, by its name."
    if found.why == "missing":
        return f"Give {found.callee} its {found.name}."
    if found.why == "attribute":
        return f"Give {found.callee} arguments of its own class."
    return f"Give {found.needed} as {found.name}."


_MESSAGES = {
    "missing": (
        "{found.callee} needs `{found.name}`, and the call does not give it: it raises TypeError."
    ),
    "twice": (
        "{found.callee} gets `{found.name}` twice, by position and by name: the call raises "
        "TypeError."
    ),
    "many": (
        "{found.callee} takes {found.needed} arguments by position and gets {found.given}: the "
        "call raises TypeError."
    ),
    "kind": "{found.callee} gets {found.given} as `{found.name}`, and needs {found.needed} there.",
    "attribute": (
        "{found.callee} reads `{found.needed}` of its `{found.name}`, and {found.given} has no "
        "such attribute: the call raises AttributeError."
    ),
    "unpacked": (
        "{found.callee} unpacks `{found.name}` as {found.needed}, and gets {found.given}: the call "
        "raises an error."
    ),
    "added": (
        "{found.callee} adds `{found.name}` to a list, and gets {found.given}: the call raises "
        "TypeError."
    ),
}
