"""LD561: a streamed dataset, and a trainer that is not told how many steps to train."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Rule, Symptom, streamed_without_steps
from lora_doctor.rules._program import slips


class StreamedWithoutMaxSteps(Rule):
    """The training data is streamed (`load_dataset(..., streaming=True)`), and `max_steps` is not
    set.

    ## What happens
    `ValueError: The train_dataset does not implement __len__, max_steps has to be specified` when
    the trainer is created, after the model was loaded.

    ## Why
    A streamed dataset has no length, so that the Trainer cannot compute the number of steps from
    the number of epochs, which the learning rate schedule needs.

    ## Versions
    All of transformers.

    ## Fix
    By hand: set `max_steps`, or load the dataset without streaming.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/trainer
    """

    code = "LD561"
    name = "streamed-without-max-steps"
    summary = "The dataset is streamed, and the trainer is not told how many steps to train."
    depth = "static"
    symptoms = (
        Symptom(r"train_dataset does not implement __len__, max_steps has to be specified"),
        Symptom(r"max_steps must be set to a positive value if dataloader does not have a length"),
    )
    told_as = ("A streamed dataset has no length, and max_steps is not set.",)
    examples = (
        Example(
            "broken",
            "tests/scripts/streamed.py",
            depth="static",
            why="a stream has no length",
        ),
        Example("healthy", "tests/scripts/streamed_with_steps.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            return  # the run created the trainer itself
        yield from slips(
            self,
            case,
            streamed_without_steps(case.program),
            "{code} trains on the stream of {other}, which has no length, and max_steps is not "
            "set: the trainer raises ValueError.",
            "streamed",
            "Set max_steps in the training arguments, or load the dataset without streaming.",
        )
