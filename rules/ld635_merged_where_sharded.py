"""LD635: a model is merged or saved where ZeRO-3 has cut its weights into shards."""

from __future__ import annotations

import re
from collections.abc import Iterator

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
    merged_where_it_trained,
    quoted,
    sharded,
)
from lora_doctor.rules._processes import SOURCE, at, failure, raised, together

_EMPTY = r"The size of tensor a \(0\) must match the size of tensor b \(\d+\)"
_FIX = (
    "Save the adapter where it was trained (trainer.save_model), and merge it in a process of its "
    "own, without DeepSpeed: PeftModel.from_pretrained(base, adapter).merge_and_unload()."
)


class MergedWhereSharded(Rule):
    """The adapter is merged into the model, or the model is saved, in the processes that trained it
    with ZeRO-3.

    ## What happens
    `merge_and_unload` raises `The size of tensor a (0) must match the size of tensor b (4096)`. Or
    nothing is raised, if the tensors of the adapter are sharded, too: `save_pretrained` writes a
    model in which every tensor has the size 0.

    ## Why
    With ZeRO-3 each process holds a part of each tensor, and the parameter itself is empty outside
    of forward and backward. PEFT adds the product of the adapter's matrices to the weight as it is
    then. DeepSpeed keeps tensors whole that have fewer elements than
    `stage3_param_persistence_threshold` (100,000): adapters of a low rank, but not the weights.

    In a script that is only read: `merge_and_unload` after `train()`, and ZeRO-3 by the arguments
    of the Trainer or by what starts the script; it is an error if that is certain. In a dry run the
    files of the saved model are looked at.

    ## Versions
    All versions of PEFT and DeepSpeed.

    ## Fix
    Save the adapter, and merge it afterwards in one process without DeepSpeed.

    ## Links
    https://github.com/huggingface/peft/issues/297
    """

    code = "LD635"
    name = "merged-where-sharded"
    summary = "A model is merged or saved where ZeRO-3 has cut its weights into shards."
    depth = "static"
    symptoms = (Symptom(_EMPTY, context=r"merge_and_unload|\bmerge\("),)
    examples = (
        Example(
            "broken",
            "tests/launched/merged_under_zero3/train.py",
            depth="static",
            why="ZeRO-3 in accelerate's config, and the trained model is merged",
        ),
        Example("healthy", "tests/launched/accumulates/train.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            yield from self._of_run(case)
            return
        found = sharded(case.program, case.launches)
        if found is None or found.by != "ZeRO-3":
            return
        for call in merged_where_it_trained(case.program):
            place = call.place
            yield self.finding(
                "error" if found.certain else "warning",
                "The adapter is merged where it was trained with ZeRO-3: weights are empty there, "
                "so that merging fails or the merged model is saved without values.",
                location=Location("file", place.file, place.line),
                evidence=(
                    Measurement("merged by", " ".join(call.span.text.split())[:100], str(place)),
                    Measurement("sharded by", found.code, str(found.place)),
                ),
                proof=Proof("inferred", "the script and the command that starts it"),
                fixes=(Fix(_FIX, "manual"),),
            )

    def _of_run(self, case: Case) -> Iterator[Finding]:
        found = case.dry_run.processes
        for one in found.saved_empty if found is not None else ():
            assert found is not None
            yield self.finding(
                "error",
                f"{one.model_class} is saved without values: {one.empty} of {one.tensors} tensors "
                f"in {one.path} have the size 0.",
                location=at(case.dry_run, one.file, one.line),
                evidence=(
                    together(found),
                    Measurement("without a value", quoted(one.names), one.path),
                ),
                proof=Proof("executed", SOURCE),
                fixes=(Fix(_FIX, "manual"),),
            )
        failed = failure(case)
        if failed is None or not re.search(_EMPTY, failed[1].message):
            return
        processes, error = failed
        if processes.zero_stage != 3 or "merge" not in error.traceback:
            return
        yield self.finding(
            "error",
            "The adapter is merged into weights that ZeRO-3 has cut into shards: they are empty "
            "outside of forward and backward.",
            location=at(case.dry_run, error.file, error.line),
            evidence=(raised(error), together(processes)),
            proof=Proof("executed", SOURCE),
            fixes=(Fix(_FIX, "manual"),),
        )
