"""LD553: DoRA reads adapter weights that FSDP 1 has cut into shards."""

from __future__ import annotations

import re
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
    is_certain,
)
from lora_doctor.rules._dry_run_script import FSDP_LOOP, MODEL
from lora_doctor.rules._processes import SOURCE, at, failure, raised, together

if TYPE_CHECKING:
    from lora_doctor.rule_api import Launch

#: Where PEFT's code of DoRA stands.
_DORA = re.compile(r"[\\/]peft[\\/]tuners[\\/]lora[\\/]dora\.py\b")
_KEY = "fsdp_use_orig_params"
_FIX = (
    "Shard with FSDP 2 (fsdp_version: 2); or set fsdp_use_orig_params: false, with which FSDP 1 "
    "trains DoRA."
)
_SCRIPT = MODEL.replace('task_type="CAUSAL_LM"', 'task_type="CAUSAL_LM", use_dora=True') + (
    "from peft.utils.other import fsdp_auto_wrap_policy\n"
    + FSDP_LOOP.replace(
        "PREPARED.train(), ", "model.train(), auto_wrap_policy=fsdp_auto_wrap_policy(model),\n    "
    )
)


class AdapterWeightsReadInShards(Rule):
    """DoRA trains with FSDP 1 and `use_orig_params=True`, and PEFT reads the shape of an adapter
    weight that is a shard at that moment.

    ## What happens
    `IndexError: tuple index out of range` in `peft/tuners/lora/dora.py`, in the first forward. The
    same adapter trains in one process.

    ## Why
    PEFT's `fsdp_auto_wrap_policy`, which the Trainer takes, makes each matrix of an adapter a shard
    of its own, which is whole only while that matrix is called. DoRA asks `lora_A.weight` for its
    shape before it calls it. With `use_orig_params=True` that weight is then a part of a flat
    tensor, or empty.

    In a script that is only read: `use_dora=True`, a Trainer, and FSDP 1 with
    `fsdp_use_orig_params: true` in the config of what starts it.

    ## Versions
    PEFT 0.12 to 0.21, with FSDP 1. FSDP 2 keeps shapes, and trains DoRA.

    ## Fix
    FSDP 2, or `fsdp_use_orig_params: false`.

    ## Links
    https://github.com/huggingface/peft/pull/1806
    """

    code = "LD553"
    name = "adapter-weights-read-in-shards"
    summary = "DoRA reads adapter weights that FSDP 1 has cut into shards."
    depth = "static"
    symptoms = (Symptom(r"IndexError: tuple index out of range", context=_DORA.pattern),)
    examples = (
        Example(
            "broken",
            "",
            script=_SCRIPT,
            processes=2,
            requires={"peft": ">=0.12"},
            why="each matrix is a shard of its own, with its original parameters",
        ),
        Example(
            "healthy",
            "",
            script=_SCRIPT.replace("use_orig_params=True", "use_orig_params=False"),
            processes=2,
            requires={"peft": ">=0.12"},
        ),
        Example(
            "broken",
            "tests/launched/dora_under_fsdp/train.py",
            depth="static",
            requires={"peft": ">=0.9"},
        ),
        Example("healthy", "tests/launched/qlora_stored_as_bfloat16/train.py", depth="static"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        if case.has("dry_run"):
            yield from self._of_run(case)
            return
        if case.program.roles.trainer is None or case.recipe.get("use_dora") is not True:
            return
        found = [launch for launch in case.launches if _keeps_parameters(launch)]
        for launch in sorted(found, key=lambda one: not one.certain)[:1]:
            certain = is_certain(launch, case.launches, _keeps_parameters)
            yield self.finding(
                "error" if certain else "warning",
                "DoRA would fail under FSDP 1 with use_orig_params: PEFT reads weights of the "
                "adapter that are shards at that moment.",
                location=Location("recipe", "use_dora"),
                evidence=(
                    Measurement("use_dora", True, str(case.recipe.places.get("use_dora", ""))),
                    Measurement(_KEY, True, f"the config of {launch.code}"[:200]),
                ),
                proof=Proof("inferred", "the script and the command that starts it"),
                fixes=(Fix(_FIX, "manual"),),
            )

    def _of_run(self, case: Case) -> Iterator[Finding]:
        failed = failure(case)
        if failed is None:
            return
        found, error = failed
        if found.ran_type != "FSDP" or not _DORA.search(error.raised_in):
            return
        yield self.finding(
            "error",
            "DoRA fails under FSDP 1: PEFT reads weights of the adapter that are shards at that "
            "moment.",
            location=at(case.dry_run, error.file, error.line),
            evidence=(
                raised(error),
                together(found),
                Measurement("raised in", error.raised_in, SOURCE),
            ),
            proof=Proof("executed", SOURCE),
            fixes=(Fix(_FIX, "manual"),),
        )


def _keeps_parameters(launch: Launch) -> bool:
    """Whether FSDP 1 cuts with ``use_orig_params``, by accelerate's config. One process cuts
    nothing."""
    if launch.processes == 1 or launch.fsdp != 1:
        return False
    part = launch.fsdp_config
    whole = str(part.get("fsdp_sharding_strategy", "")).upper() in ("NO_SHARD", "3")
    return str(part.get(_KEY)).lower() == "true" and not whole
