"""LD543: DDP waits for gradients that are never computed."""

from __future__ import annotations

import re
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
    quoted,
)
from lora_doctor.rules._dry_run_script import DDP_LOOP, MODEL
from lora_doctor.rules._processes import SOURCE, at, failure, raised, together

_MESSAGE = re.compile(r"Expected to have finished reduction in the prior iteration")
_NAMES = re.compile(r"Parameters which did not receive grad for rank \d+: ([\w.]+(?:, [\w.]+)*)")
_NUMBERS = re.compile(r"Parameter indices which did not receive grad[^:]*: ([\d ]+)")
_UNUSED = "model.base_model.model.extra = torch.nn.Linear(4, 4)\nrank = int"


class ParametersUnusedUnderDdp(Rule):
    """Trainable parameters do not contribute to the loss, and DDP waits for their gradients.

    ## What happens
    The second step raises `Expected to have finished reduction in the prior iteration before
    starting a new one. This error indicates that your module has parameters that were not used in
    producing loss`. With one process nothing is raised.

    ## Why
    `DistributedDataParallel` averages gradients once all trainable parameters have one. Adapters in
    a tower that the batches do not reach, in experts that got no token, in a head whose output is
    not in the loss, or of a second, inactive adapter never get one.

    ## Versions
    All. Where `ddp_find_unused_parameters` is not set, the Trainer chooses it, depending on the
    release and on gradient checkpointing.

    ## Fix
    Train only what the loss needs; or `ddp_find_unused_parameters=True`
    (`DistributedDataParallelKwargs(find_unused_parameters=True)`), which traverses the autograd
    graph in each step and does not work with reentrant checkpointing.

    ## Links
    https://pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
    """

    code = "LD543"
    name = "parameters-unused-under-ddp"
    summary = "Trainable parameters do not contribute to the loss, and DDP waits for them."
    depth = "static"
    symptoms = (
        Symptom(r"Expected to have finished reduction in the prior iteration", weight=2),
        Symptom(r"parameters that were not used in producing loss", weight=2),
        Symptom(r"Parameter(?:s| indices) which did not receive grad", weight=2),
    )
    told_as = ("DDP fails on parameters that are not used: find_unused_parameters.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL + DDP_LOOP.replace("rank = int", _UNUSED),
            processes=2,
            why="a layer that trains, and that no loss depends on",
        ),
        Example("healthy", "", script=MODEL + DDP_LOOP, processes=2),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        failed = failure(case)
        if failed is None or not _MESSAGE.search(failed[1].message):
            return
        found, error = failed
        text = f"{error.message}\n{error.traceback}"
        names = _NAMES.search(text)
        unused = [name.strip() for name in names[1].split(",")] if names else []
        numbers = _NUMBERS.search(text)
        evidence = [raised(error), together(found)]
        if unused:
            evidence.append(Measurement("got no gradient", quoted(unused, 4), "DDP"))
        elif numbers:
            count = len(numbers[1].split())
            evidence.append(Measurement("parameters without a gradient", count, "DDP"))
        what = quoted(unused, 2) if unused else "trainable parameters"
        yield self.finding(
            "error",
            f"DDP waits for gradients of {what}, which do not contribute to the loss.",
            location=at(case.dry_run, error.file, error.line),
            evidence=tuple(evidence),
            proof=Proof("executed", SOURCE),
            fixes=(
                Fix(
                    "Train only what the loss depends on (targets, modules_to_save, adapters), "
                    "or set ddp_find_unused_parameters=True (accelerate: "
                    "DistributedDataParallelKwargs(find_unused_parameters=True)).",
                    "manual",
                ),
            ),
        )
