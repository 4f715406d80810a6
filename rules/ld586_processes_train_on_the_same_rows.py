"""LD586: every process trains on the same rows."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Example,
    Finding,
    Fix,
    Measurement,
    Proof,
    Rule,
    Symptom,
)
from lora_doctor.rules._dry_run_script import DDP_LOOP, MODEL
from lora_doctor.rules._processes import SOURCE, at, together

#: What splits the batch of a step over the processes. DeepSpeed is left out: its tensor
#: parallelism needs the same rows in each of them.
_SPLIT = ("DDP", "FSDP", "FSDP2")
_SAME = MODEL + DDP_LOOP.replace("100 * rank", "100")


class ProcessesTrainOnTheSameRows(Rule):
    """Several processes train together, and each of them gets the same batches.

    ## What happens
    Nothing is raised. The gradients that are averaged are the same ones, so that N processes do the
    work of one: the effective batch size is a fraction of the planned one, every row is trained on
    N times in an epoch, and N GPUs are no faster than one.

    ## Why
    The loader was not told that there are several processes: a `DataLoader` without
    `DistributedSampler` in a loop of your own, one that `accelerator.prepare` was not given, a
    `get_train_dataloader` that makes its own, or an `IterableDataset` that is not split by process.

    Found by execution: the token ids of the first training batches of all processes are compared.
    Nothing is said where a process repeats one batch, or where rows were repeated by the dry run.

    ## Versions
    All.

    ## Fix
    `accelerator.prepare(loader)`, `DataLoader(..., sampler=DistributedSampler(rows))` with
    `sampler.set_epoch(epoch)`, or `split_dataset_by_node` for a stream.

    ## Links
    https://pytorch.org/docs/stable/data.html#torch.utils.data.distributed.DistributedSampler
    https://huggingface.co/docs/datasets/use_with_pytorch#distributed
    """

    code = "LD586"
    name = "processes-train-on-the-same-rows"
    summary = "Every process of a distributed training gets the same batches."
    depth = "static"
    descriptions = (
        Symptom(
            r"\b(?:all|each|every|both) (?:ranks?|process(?:es)?|gpus?)\b.{0,40}"
            r"\b(?:the )?(?:same|identical) (?:batch(?:es)?|data|samples|rows)\b"
        ),
    )
    told_as = ("Each GPU trains on the same rows of the dataset.",)
    examples = (
        Example("broken", "", script=_SAME, processes=2, why="a loader without DistributedSampler"),
        Example("healthy", "", script=MODEL + DDP_LOOP, processes=2),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.dry_run.processes
        if found is None or found.ran_type not in _SPLIT or found.same_batches < 2:
            return
        yield self.finding(
            "warning",
            f"The first {found.same_batches} training batches are the same in all {found.met} "
            "processes: together they train on what one of them would.",
            location=at(case.dry_run, "", 0),
            evidence=(
                together(found),
                Measurement("batches that are the same in all", found.same_batches, SOURCE),
            ),
            proof=Proof("executed", SOURCE),
            fixes=(
                Fix(
                    "Let accelerate prepare the loader, or give it a DistributedSampler; split a "
                    "stream with split_dataset_by_node.",
                    "manual",
                ),
            ),
        )
