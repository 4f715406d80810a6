"""LD544: reentrant checkpointing under DDP."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    ReentrantDdp,
    Rule,
    Symptom,
    reentrant_under_ddp,
)
from lora_doctor.rules._dry_run_script import DDP_LOOP, MODEL
from lora_doctor.rules._processes import SOURCE, at, failure, raised, together

_MESSAGE = re.compile(r"Expected to mark a variable ready only once")
_KEY = "gradient_checkpointing_kwargs"
_CHECKPOINTED = DDP_LOOP.replace(
    "rank = int",
    "model.gradient_checkpointing_enable({'use_reentrant': REENTRANT})\n"
    "model.enable_input_require_grads()\nrank = int",
).replace(
    "DistributedDataParallel(model.train())",
    "DistributedDataParallel(model.train(), find_unused_parameters=True)",
)


class ReentrantCheckpointingUnderDdp(Rule):
    """Reentrant gradient checkpointing runs a backward pass inside the backward pass, and DDP sees
    some gradients twice.

    ## What happens
    `RuntimeError: Expected to mark a variable ready only once`, often with `marked as ready twice`
    and the name of an adapter of the last layer. With one process nothing is raised.

    ## Why
    `DistributedDataParallel` with `find_unused_parameters=True` marks parameters that it does not
    find in the graph as ready when forward ends; with reentrant checkpointing the inner graph does
    not exist yet, so its parameters are marked again in backward. The Trainer sets it for a PEFT
    model unless `ddp_find_unused_parameters` is given.

    Found by a dry run with several processes, and in a script that is only read, if a launcher
    next to it starts several processes without FSDP and DeepSpeed. It is a warning if another
    command next to the script starts it differently.

    ## Versions
    All versions of torch. transformers before 5 uses reentrant checkpointing by default.

    ## Fix
    `gradient_checkpointing_kwargs: {use_reentrant: false}`: the same results. Or
    `ddp_find_unused_parameters=False`, if every parameter is used.

    ## Links
    https://pytorch.org/docs/stable/checkpoint.html
    """

    code = "LD544"
    name = "reentrant-checkpointing-under-ddp"
    summary = "Reentrant gradient checkpointing does not work with this DDP setting."
    depth = "static"
    symptoms = (
        Symptom(r"Expected to mark a variable ready only once"),
        Symptom(r"has been marked as ready twice"),
    )
    told_as = ("Gradient checkpointing with DDP fails, a parameter is marked as ready twice.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + _CHECKPOINTED.replace("REENTRANT", "True"),
            processes=2,
            requires={"transformers": ">=4.50"},
            why="find_unused_parameters and reentrant checkpointing",
        ),
        Example(
            "healthy",
            "",
            script=MODEL + _CHECKPOINTED.replace("REENTRANT", "False"),
            processes=2,
            requires={"transformers": ">=4.50"},
        ),
        Example(
            "broken",
            "tests/launched/reentrant/train.py",
            depth="static",
            why="the Trainer looks for unused parameters, and run.sh starts two processes",
        ),
        Example("healthy", "tests/launched/not_reentrant/train.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if not case.has("dry_run"):
            read = reentrant_under_ddp(case.program, case.launches)
            if read is not None:
                yield self._of_script(case, read)
            return
        failed = failure(case)
        if failed is None or not _MESSAGE.search(failed[1].message):
            return
        found, error = failed
        if found.reentrant is False:
            return
        yield self.finding(
            "error",
            "Gradient checkpointing is reentrant, and DDP sees gradients of the same parameter "
            "twice.",
            location=at(case.dry_run, error.file, error.line),
            evidence=(
                raised(error),
                together(found),
                Measurement("checkpointing", "reentrant" if found.reentrant else "unknown", SOURCE),
            ),
            proof=Proof("executed", SOURCE),
            fixes=(_fix(case),),
        )

    def _of_script(self, case: Case, found: ReentrantDdp) -> Finding:
        """What a script that was only read says, with what starts it."""
        kept = case.recipe.get(_KEY)
        edit = Edit(_KEY, {**(kept if isinstance(kept, dict) else {}), "use_reentrant": False})
        return self.finding(
            "error" if found.certain else "warning",
            "Gradient checkpointing is reentrant, and DDP looks for unused parameters: backward "
            "will raise RuntimeError, because DDP sees some gradients twice.",
            location=Location("file", found.place.file, found.place.line),
            evidence=(
                Measurement("checkpointing", found.reentrant, str(found.place)),
                Measurement("find_unused_parameters", found.unused, "the Trainer's arguments"),
                Measurement(
                    "processes", f"{found.launch.processes}: {found.launch.code}",
                    str(found.launch.place),
                ),
            ),
            proof=Proof(
                "inferred", "the script, what starts it, and the installed Trainer were read"
            ),
            fixes=(Fix("Use non-reentrant checkpointing.", "unsafe", (edit,)),),
        )  # fmt: skip


def _fix(case: Case) -> Fix:
    """An edit where a trainer reads its arguments; words where a loop checkpoints by itself."""
    if case.dry_run.trained_by in ("", "a loop"):
        text = "gradient_checkpointing_enable({'use_reentrant': False}) instead of True"
        return Fix(f"Use non-reentrant checkpointing: {text}.", "manual")
    settings = case.recipe.get(_KEY)
    kept = dict(settings) if isinstance(settings, dict) else {}
    edit = Edit(_KEY, {**kept, "use_reentrant": False})
    return Fix("Use non-reentrant checkpointing.", "unsafe", (edit,))
