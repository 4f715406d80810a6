"""LD542: several processes save an adapter, and the file is incomplete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

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
from lora_doctor.rules._processes import SOURCE, at, together

if TYPE_CHECKING:
    from lora_doctor.rule_api import Processes, SavedAdapter

#: What torch raises where values are asked for that other processes hold.
_OF_SHARDS = re.compile(r"invalid python storage|DTensor|mixed torch\.Tensor|data_ptr|storage")
_SAVED = """
from peft import get_peft_model_state_dict

state = get_peft_model_state_dict(model)
if rank == 0:
    torch.save(state, "adapter.bin")
"""


class AdapterNotSavedWhole(Rule):
    """The model is sharded over several processes, and the adapter they save is incomplete.

    ## What happens
    Training ends normally. The folder contains no adapter, or a file without tensors, or only the
    part of one process: loading reports missing keys, or nothing, and the model answers as if it
    had never been trained.

    ## Why
    With FSDP and ZeRO-3 each process holds a part of each tensor. `Trainer.save_model` writes
    nothing where `fsdp_state_dict_type` is `SHARDED_STATE_DICT`; PEFT 0.21 finds no adapter in the
    full state dict of FSDP 1 either, whose modules have other names (a file of 0 tensors).
    `model.save_pretrained` and `get_peft_model_state_dict` of the unwrapped model see only this
    process's part, which may be empty (FSDP 2: `Attempted to access the data pointer on an invalid
    python storage`).

    Found by execution: names and shapes in the file are compared with those of the adapter before
    it was sharded.

    ## Versions
    All.

    ## Fix
    Gather a full state dict when the adapter is saved. That changes what is written, not training.

    ## Links
    https://huggingface.co/docs/peft/accelerate/fsdp
    """

    code = "LD542"
    name = "adapter-not-saved-whole"
    summary = "Several processes save an adapter, and the file is incomplete."
    depth = "static"
    symptoms = (
        Symptom(
            r"Attempted to access the data pointer on an invalid python storage",
            context=r"save_pretrained|save_file",
        ),
    )
    descriptions = (
        Symptom(
            r"\b(?:zero-?3|zero.{0,3}stage.{0,3}3|stage-?3|fsdp)\b.{0,120}\b(?:adapter\w*|lora)\b"
            r".{0,60}\b(?:\d+ ?(?:b|bytes?|k|kb|kib)\b|tiny|much smaller|incomplete)"
        ),
        Symptom(
            r"\A(?=.*\b(?:zero.?3|stage.?3|fsdp)\b)(?=.*\b(?:adapters?\w*|checkpoints?|lora)\b"
            r")(?=.*\bsav\w*)(?=.*(?:\b(?:empty|null|incomplete)\b|\b\d+ ?(?:bytes?|kb|k)\b))."
            r"+"
        ),
    )
    told_as = ("The adapter file of a run with FSDP on several GPUs is empty, or incomplete.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL
            + DDP_LOOP.replace(
                "torch.nn.parallel.DistributedDataParallel(model.train())",
                "fully_shard(model.train())",
            ).replace(
                "import torch\n", "import torch\nfrom torch.distributed.fsdp import fully_shard\n"
            )
            + _SAVED,
            processes=2,
            why="each process has its part of each tensor",
        ),
        Example("healthy", "", script=MODEL + DDP_LOOP + _SAVED, processes=2),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.dry_run.processes
        if found is None:
            return
        whole = any(one.good for one in found.saved)
        for one in found.saved:
            if one.good or (one.error and not (found.sharded and _OF_SHARDS.search(one.error))):
                continue
            yield self.finding(
                "warning" if whole and not one.error else "error",
                f"{one.by} cannot save the shards of the adapter: {one.error}"
                if one.error
                else f"{one.by} writes {_what(one)} to {one.path}; {one.expected} tensors were "
                "trained.",
                location=at(case.dry_run, one.file, one.line),
                evidence=(
                    together(found),
                    Measurement("tensors of the adapter", one.expected, "before it was sharded"),
                    Measurement("complete in the file", one.whole, one.path),
                    *_shards(one),
                ),
                proof=Proof("executed", SOURCE),
                fixes=(Fix(_remedy(found, one), "manual"),),
            )


def _what(one: SavedAdapter) -> str:
    if not one.written:
        return "no adapter"
    if one.whole or one.partial:
        parts = (
            f", {len(one.partial) + len(one.empty)} incomplete" if one.partial or one.empty else ""
        )
        return f"{one.whole} complete tensors{parts}"
    return "tensors without values" if one.empty else "a file without tensors of the adapter"


def _shards(one: SavedAdapter) -> tuple[Measurement, ...]:
    made = [Measurement("exception", one.error, SOURCE)] if one.error else []
    if one.empty:
        made.append(Measurement("without a value", quoted(one.empty, 3), one.path))
    if one.partial:
        made.append(Measurement("a shard's shape", quoted(one.partial, 3), one.path))
    if not one.written:
        made.append(Measurement("file", "none was written", one.path))
    return tuple(made)


def _remedy(found: Processes, one: SavedAdapter) -> str:
    if found.ran_type == "DeepSpeed":
        return (
            "Set stage3_gather_16bit_weights_on_model_save (accelerate: zero3_save_16bit_model) to "
            "true, and save by trainer.save_model, or with "
            "state_dict=accelerator.get_state_dict(model)."
        )
    if one.by.startswith("Trainer"):
        if found.ran_type == "FSDP" and found.state_dict == "FULL_STATE_DICT":
            return (
                "Use FSDP 2 (fsdp_version: 2): this PEFT does not find the adapters in a full "
                "state dict by the names that FSDP 1 gives to modules."
            )
        return (
            "Before saving: trainer.accelerator.state.fsdp_plugin.set_state_dict_type("
            '"FULL_STATE_DICT"), or fsdp_state_dict_type: FULL_STATE_DICT in the config.'
        )
    return (
        "Save in all processes with state_dict=accelerator.get_state_dict(model), or with "
        "torch.distributed.checkpoint.state_dict.get_model_state_dict and full_state_dict=True."
    )
