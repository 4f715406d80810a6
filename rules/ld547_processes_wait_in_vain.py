"""LD547: a process waits for another one that never arrives."""

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
from lora_doctor.rules._processes import SOURCE, at, raised, together

_TIMEOUT = r"Watchdog caught collective operation timeout"
_CLOSED = r"Connection closed by peer \["
#: What shows that one process alone does something: a network that is slow gives a timeout as well.
_ONE_ALONE = (
    r"(?i)\bbarrier\b|\bis_(?:local_)?(?:main_process|world_process_zero)\b|\bwait_for_everyone\b"
    r"|\b(?:local_)?rank(?:\(\))? ?== ?0\b"
)


class ProcessesWaitInVain(Rule):
    """One process is in a collective operation that all processes have to enter, and another one
    has ended or is elsewhere.

    ## What happens
    The run hangs until a timeout of half an hour, or ends with `Connection closed by peer` and a
    traceback that points to unrelated code.

    ## Why
    One process alone does something that needs all of them: saving a sharded model or evaluating
    under `if rank == 0`, a `barrier` after an early `return`, data loaders of different lengths.

    Found by execution: no process failed by itself, and the line shown is where this process
    waited.

    ## Versions
    All.

    ## Fix
    Call it in all processes (`Trainer.save_model`, `get_state_dict` and `evaluate` decide
    themselves which process writes); give all processes the same number of batches.

    ## Links
    https://pytorch.org/docs/stable/distributed.html
    """

    code = "LD547"
    name = "processes-wait-in-vain"
    summary = "A process waits for another one that never arrives."
    depth = "static"
    symptoms = (
        Symptom(_TIMEOUT, consequence=True),
        Symptom(_TIMEOUT, context=_ONE_ALONE),
        Symptom(_CLOSED, "gloo", consequence=True),
        Symptom(_CLOSED, "gloo", context=_ONE_ALONE),
        Symptom(r"Detected mismatch between collectives on ranks"),
    )
    told_as = ("Training hangs on several GPUs.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + DDP_LOOP + "\nif rank == 0:\n    torch.distributed.barrier()\n",
            processes=2,
            why="a barrier that one process alone comes to",
        ),
        Example(
            "healthy",
            "",
            script=MODEL + DDP_LOOP + "\ntorch.distributed.barrier()\n",
            processes=2,
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.dry_run.processes
        error = case.dry_run.error
        if error is None or found is None or found.met < 2 or not found.waiting:
            return
        where = [
            Measurement(f"rank {one.rank} waited at", f"{one.file}:{one.line}", one.message[:200])
            for one in found.waiting
            if one.file
        ]
        ranks = ", ".join(str(one.rank) for one in found.waiting)
        first = found.waiting[0]
        yield self.finding(
            "error",
            f"Rank {ranks} of {found.met} waits for processes that never arrive: they have "
            "ended, or run other code.",
            location=at(case.dry_run, first.file, first.line),
            evidence=(raised(error), together(found), *where),
            proof=Proof("executed", SOURCE),
            fixes=(
                Fix(
                    "Call collective operations in all processes, and let them decide which "
                    "one writes; give all processes the same number of batches.",
                    "manual",
                ),
            ),
        )
