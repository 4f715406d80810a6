"""LD653: a run is to be resumed from a folder that holds no state of a Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_doctor.rule_api import (
    TRAINER_STATE,
    Case,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    framework_named,
    resumed_from,
    without_state,
)
from lora_doctor.rules._set_up import located

_ENTRY = "resume_from_checkpoint"


class CheckpointWithoutState(Rule):
    """`resume_from_checkpoint` names a folder in which an adapter or a model was saved, and not a
    checkpoint of the Trainer.

    ## What happens
    The weights are loaded, and then `trainer.train` raises `FileNotFoundError`: no
    `trainer_state.json`.

    ## Why
    Resuming needs the Trainer's state, with its optimizer and schedule, which the Trainer writes
    into `checkpoint-N`. `save_pretrained` and `trainer.save_model` write weights only.

    ## Versions
    All. Only a folder that is here is looked at.

    ## Fix
    Name a `checkpoint-N` folder. To go on from the weights alone, load them with
    `PeftModel.from_pretrained(model, folder, is_trainable=True)` and call `train()` without
    `resume_from_checkpoint`.

    ## Links
    https://huggingface.co/docs/transformers/trainer,
    https://github.com/microsoft/PhiCookBook/issues/344
    """

    code = "LD653"
    name = "checkpoint-without-state"
    summary = "A run is resumed from a folder that has no state of a Trainer."
    depth = "static"
    symptoms = (
        Symptom(r"No such file or directory: '[^']*trainer_state\.json'"),
    )  # fmt: skip
    told_as = ("The checkpoint to resume from has no trainer_state.json.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/resumed_from_adapter.py",
            depth="static",
            why="a folder with weights alone",
        ),
        Example("healthy", "tests/scripts/merged_and_kept.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        for location, path, folders in _named(case):
            folder = without_state(path, folders)
            if folder is None:
                continue
            names = sorted(one.name for one in folder.iterdir())
            yield self.finding(
                "error",
                f"resume_from_checkpoint will fail: {path} has no {TRAINER_STATE}, which the "
                "Trainer reads first.",
                location=location,
                evidence=(
                    Measurement("the folder holds", ", ".join(names[:8]) or "nothing", str(folder)),
                ),
                proof=Proof("read", "the files of the folder were listed"),
                fixes=(
                    Fix(
                        "Name a checkpoint-N folder of the Trainer; or load the adapter with "
                        "PeftModel.from_pretrained(model, folder, is_trainable=True) and train "
                        "without resume_from_checkpoint.",
                        "manual",
                    ),
                ),
            )


def _named(case: Case) -> Iterator[tuple[Location, str, list[Path]]]:
    """The checkpoints that the set-up names: where, which, and from where a path may be meant."""
    if case.has("set_up"):
        value = framework_named(case.set_up.format).resumes(case.set_up.entries)
        if isinstance(value, str) and value.strip():
            beside = [Path(one).parent for one in case.set_up.files[:1]]
            yield located(case.set_up, _ENTRY), value, [Path(), *beside]
    elif case.has("program"):
        for one in resumed_from(case.program):
            beside = [case.program.program.path.parent]
            yield Location("file", one.place.file, one.place.line), one.path, [Path(), *beside]
