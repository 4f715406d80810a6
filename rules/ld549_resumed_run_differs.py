"""LD549: a run resumed from its checkpoint differs from one that was not interrupted."""

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
)
from lora_doctor.rules._dry_run_script import MODEL

if TYPE_CHECKING:
    from lora_doctor.rule_api import DryRun

_RESUMED = """
import os

rows = [{"input_ids": (r := [1, *range(5 + n, 15 + n), 2]), "labels": r} for n in range(160)]
trainer = Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=2, save_steps=50, OPTIONS),
    train_dataset=rows,
    data_collator=default_data_collator,
)
trainer.train(resume_from_checkpoint="an/earlier/checkpoint")
"""


class ResumedRunDiffers(Rule):
    """A run that is resumed from its own checkpoint does not continue as if it had not been
    interrupted.

    ## What happens
    Nothing is raised. The loss jumps where the run is resumed, momentum starts at 0, rows are seen
    twice or never; or resuming fails, just when it is needed.

    ## Why
    A checkpoint holds weights, optimizer, scheduler and random states only if all of them are saved
    and loaded: `save_only_model: true` leaves out the last three, `ignore_data_skip: true` begins
    at the first row again, and state that the script keeps elsewhere (its own schedule, a sampler
    seeded from the clock) is in no checkpoint. An optimizer refuses the state of one that had other
    trainable weights (`loaded state dict contains a parameter group that doesn't match`). With
    FSDP 1 and `SHARDED_STATE_DICT`, transformers 5.23 with accelerate 1.15 does not restore the
    adapter: training continues with a new one.

    Found by execution, with `--check-resume` or if the command resumes: the last step of the dry
    run is repeated from the checkpoint that the Trainer saved before it.

    ## Versions
    `save_only_model` from transformers 4.37 on.

    ## Fix
    Use `save_only_model` and `ignore_data_skip` only in runs that will never be resumed.

    ## Links
    https://huggingface.co/docs/transformers/trainer#checkpoints
    """

    code = "LD549"
    name = "resumed-run-differs"
    summary = "A run resumed from its checkpoint differs from one that was not interrupted."
    depth = "static"
    symptoms = (
        Symptom(r"arguments do not match the ones in the `trainer_state\.json`", aside=True),
        Symptom(
            r"loaded state dict (?:contains a parameter group that doesn't match the size of|has a "
            r"different number of parameter groups)"
        ),
        Symptom(
            r"Missing key\(s\) in state_dict: \"\w+\.",
            "DeepSpeed, sentence-transformers, transformers<4.31",
            context=r"deepspeed_load_checkpoint|\bin load_checkpoint\b|_load_from_checkpoint"
            r"|resume_from_checkpoint|state_dict for SentenceTransformer",
        ),
    )
    descriptions = (
        Symptom(
            r"\bresum\w*\b.{0,80}\bloss\b.{0,30}\b(?:jump\w*|spike\w*|goes up|back up|higher|s"
            r"tarts? over)"
        ),
        Symptom(
            r"\bresum\w*\b.{0,80}\b(?:optimizer|scheduler|momentum)\b.{0,40}\b(?:reset|lost|fr"
            r"om scratch)"
        ),
        Symptom(
            r"\A(?=.*\bresum\w*)(?=.*\b(?:optimizer|scheduler)\b)(?=.*\b(?:unable|cannot|can't"
            r"|fail\w*|lost|reset|not (?:loaded|restored))\b).+"
        ),
    )
    told_as = (
        "After resuming from a checkpoint the loss is higher than before.",
        "Resuming does not restore the optimizer state.",
        "After a restart the training loss jumps up, as if it began again.",
        "The loss spikes when training is resumed.",
        "After resuming, the learning rate starts from the beginning.",
    )
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _RESUMED.replace("OPTIONS", "save_only_model=True"),
            processes=0,
            requires={"transformers": ">=4.38"},
            why="the optimizer begins anew",
        ),
        Example(
            "healthy",
            "",
            script=MODEL + _RESUMED.replace("OPTIONS", "logging_steps=1"),
            processes=0,
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        run = case.dry_run
        found = run.resumed
        if found is None or found.same:
            return
        source = f"step {found.step} of the dry run"
        place = Location("file", found.file, found.line) if found.file else None
        what = (
            f"Resuming from a checkpoint of the run fails: {found.error}"
            if found.error
            else f"Step {found.step} differs when it is taken from the checkpoint: loss "
            f"{found.resumed_loss:.6g} instead of {found.loss:.6g}, trainable parameters "
            f"{found.apart:.2g} apart after a step that changes them by {found.moved:.2g}"
        )
        yield self.finding(
            "error" if found.error else "warning",
            f"{what}.",
            location=place or Location("environment", " ".join(run.command)[:200]),
            evidence=(
                Measurement("loss without interruption", found.loss, source),
                Measurement("loss from the checkpoint", found.resumed_loss, source),
                Measurement(
                    "largest change of a trainable parameter in the step", found.moved, source
                ),
                Measurement("largest difference after the step", found.apart, source),
                Measurement("files of the checkpoint", ", ".join(found.files)[:300], source),
            ),
            proof=Proof("executed", source),
            fixes=(Fix(_remedy(run), "manual"),),
        )


def _remedy(run: DryRun) -> str:
    if run.processes is not None and run.processes.ran_type == "FSDP":
        return "Shard with FSDP 2 (fsdp_version: 2), whose checkpoints restore the adapter."
    return (
        "Save and load all of it: save_only_model: false, ignore_data_skip: false, and a seed for "
        "what draws rows."
    )
