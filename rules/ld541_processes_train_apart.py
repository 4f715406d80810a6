"""LD541: several processes train independently."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Proof, Rule, Symptom
from lora_doctor.rules._dry_run_script import DDP_LOOP, LOOP, MODEL
from lora_doctor.rules._processes import SOURCE, at, together

#: Relative difference of the same sums in two processes, above that of their rounding.
_APART = 1e-6


class ProcessesTrainApart(Rule):
    """A launcher has started several processes, and each trains its own model independently.

    ## What happens
    Nothing is raised. Every process trains on its own rows, all of them write to the same folder,
    and only the adapter of one is kept: the work of the others is lost, and the effective batch
    size is a fraction of the planned one.

    ## Why
    Gradients are averaged by `DistributedDataParallel`, FSDP or DeepSpeed. A loop that is started
    by `torchrun` without a process group or without one of them, or that calls `model.module(...)`
    instead of `model(...)`, averages none.

    Found by execution: the adapters of the processes are compared after the same steps.

    ## Versions
    All.

    ## Fix
    `accelerator.prepare(model, optimizer, loader)`, or `init_process_group` and
    `DistributedDataParallel(model)` with a `DistributedSampler`; or one process.

    ## Links
    https://pytorch.org/docs/stable/notes/ddp.html
    """

    code = "LD541"
    name = "processes-train-apart"
    summary = "Several processes are started, and each trains its own model independently."
    depth = "static"
    descriptions = (
        Symptom(
            r"\b(?:each|every) (?:process|gpu|rank)\b.{0,40}\b(?:its own|a separate) (?:model|"
            r"copy|run)\b"
        ),
    )
    told_as = (
        "The GPUs do not exchange gradients: each process trains a model of its own.",
        "Training on two GPUs gives the same result as on one.",
        "Each GPU trains its own separate model.",
    )
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + LOOP,
            processes=2,
            why="a loop for one process, started twice",
        ),
        Example("healthy", "", script=MODEL + DDP_LOOP, processes=2),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.dry_run.processes
        run = case.dry_run
        if found is None or len(found.trained) < 2 or found.errors:
            return
        differ = found.apart > _APART
        if found.met > 1 and not differ:
            return
        if found.met < 2 and run.trained_by != "a loop":
            return  # a trainer meets on other machines, if not on this one
        evidence = [together(found)]
        if found.sums:
            sums = ", ".join(f"rank {rank}: {value:.6g}" for rank, value in found.sums.items())
            evidence.append(
                Measurement("sum of absolute trainable parameters, same steps", sums, SOURCE)
            )
        why = (
            "they have no process group"
            if found.met < 2
            else (
                f"after the same steps the sums of their adapters differ by {found.apart:.2g} "
                "(relative)"
            )
        )
        yield self.finding(
            "error",
            f"{len(found.trained)} processes train independently: {why}.",
            location=at(run, "", 0),
            evidence=tuple(evidence),
            proof=Proof("executed", SOURCE),
            fixes=(
                Fix(
                    "Let accelerate prepare model, optimizer and loader, or wrap the model in "
                    "DistributedDataParallel and call the wrapper; or start one process.",
                    "manual",
                ),
            ),
        )
