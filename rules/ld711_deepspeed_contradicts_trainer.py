"""LD711: the DeepSpeed config contradicts the arguments of the Trainer."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Contradiction,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    accumulation_of,
    contradictions,
    program_contradictions,
    quoted,
)
from lora_doctor.rules._processes import at, raised

_REFUSED = r"DeepSpeed config values that mismatch (?:TrainingArguments|kwargs) values"
_READ = "compared in the same way as transformers' HfTrainerDeepSpeedConfig, which was not run"


class DeepspeedContradictsTrainer(Rule):
    """The DeepSpeed config contradicts the arguments of the Trainer.

    ## What happens
    `ValueError: Please correct the following DeepSpeed config values that mismatch
    TrainingArguments values`, before training.

    ## Why
    transformers compares the values in the file with its own arguments, and fills in those that are
    `auto`. Without a file, accelerate makes the config of its own one: `accelerate config` writes
    `gradient_accumulation_steps: 1`, and `mixed_precision: bf16` has to be `bf16=True` for the
    Trainer, too.

    A framework's file or a script is read together with the configs that it or its launcher names;
    in a dry run the exception itself is the evidence.

    ## Versions
    All versions with DeepSpeed.

    ## Fix
    `auto` in the DeepSpeed config, or the same value in accelerate's config and the arguments.

    ## Links
    https://huggingface.co/docs/transformers/deepspeed
    """

    code = "LD711"
    name = "deepspeed-contradicts-trainer"
    summary = "The DeepSpeed config contradicts the arguments of the Trainer."
    depth = "static"
    symptoms = (
        Symptom(_REFUSED),
        Symptom(r"train_batch_size is not equal to micro_batch_per_gpu \* gradient_acc_step"),
        Symptom(r"--adafactor was passed, but also found `optimizer` configured in the DeepSpeed"),
        Symptom(
            r"cannot specify an? (?:optimizer|scheduler) in the config file and in the code at"
        ),
    )
    told_as = ("The DeepSpeed config does not match the training arguments.",)
    examples = (
        Example("broken", "tests/set_ups/deepspeed/contradicts.yaml", depth="static"),
        Example("healthy", "tests/set_ups/deepspeed/agrees.yaml", depth="meta"),
        Example(
            "broken",
            "tests/launched/accumulates_twice/train.py",
            depth="static",
            why="accelerate's config has one micro-batch in a step, the Trainer has four",
        ),
        Example("healthy", "tests/launched/accumulates/train.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            yield from self._of_run(case)
        elif case.has("program"):
            yield from self._of_script(case)
        else:
            yield from self._of_set_up(case)

    def _of_set_up(self, case: Case) -> Iterator[Finding]:
        files, recipe = case.side_files, case.recipe
        config, file = files.deepspeed, files.deepspeed_file
        if config is None and files.accelerate is not None:
            config, file = accumulation_of(files.accelerate), files.accelerate_file
        if config is None:
            for name, reason in files.missing.items():
                raise EvidenceError(f"{name}: {reason}", remedy="file")
            return
        others = contradictions(
            config, lambda key: recipe.get(key, False if key in ("fp16", "bf16") else None)
        )
        if not others:
            return
        place = case.set_up.places.get("deepspeed")
        yield self.finding(
            "error",
            f"{file} sets {quoted(one.name for one in others)} differently "
            "from the Trainer's arguments, which transformers may refuse.",
            location=Location("file", place.file, place.line) if place else Location("file", file),
            evidence=tuple(_measured(one, file) for one in others),
            proof=Proof("inferred", _READ),
            fixes=(
                Fix(f'Write "auto" for {quoted(one.name for one in others)} in {file}.', "manual"),
            ),
        )

    def _of_script(self, case: Case) -> Iterator[Finding]:
        """What a script that was only read says, with what starts it."""
        read = program_contradictions(case.program, case.launches)
        if read is None:
            return
        names = quoted(one.name for one in read.found)
        yield self.finding(
            "error" if read.certain else "warning",
            f"DeepSpeed's config sets {names} differently from the Trainer's arguments, which "
            "transformers refuses.",
            location=Location("file", read.place.file, read.place.line),
            evidence=(
                *(_measured(one, str(read.place)) for one in read.found),
                Measurement("DeepSpeed is set up by", read.config, str(read.place)),
            ),
            proof=Proof("inferred", _READ),
            fixes=(Fix(f'Give {names} the same value in both places, or "auto".', "manual"),),
        )

    def _of_run(self, case: Case) -> Iterator[Finding]:
        """What the Trainer of a command that was dry-run raised."""
        error = case.dry_run.error
        if error is None or not re.search(_REFUSED, error.message):
            return
        yield self.finding(
            "error",
            "transformers refuses the DeepSpeed config, which contradicts the Trainer's arguments: "
            f"{'; '.join(re.findall(r'- (ds .+)', error.message))[:400]}.",
            location=at(case.dry_run, error.file, error.line),
            evidence=(raised(error),),
            proof=Proof("executed", "the user's command, dry-run"),
            fixes=(
                Fix(
                    'Write "auto" for these values in the DeepSpeed config, or give them the same '
                    "value in accelerate's config and in the arguments.",
                    "manual",
                ),
            ),
        )


def _measured(one: Contradiction, source: str) -> Measurement:
    return Measurement(one.name, f"DeepSpeed: {one.value}; {one.key}: {one.ours}", source)
