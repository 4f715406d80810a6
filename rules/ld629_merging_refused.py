"""LD629: the adapters train and reload, but PEFT cannot merge them."""

from __future__ import annotations

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
)
from lora_doctor.rules._ablation import judged


class MergingRefused(Rule):
    """`merge_and_unload` raises for this kind of adapter on these layers; training, saving and
    loading are not affected.

    ## What happens
    Training works and the adapters can be loaded. A script that merges them at the end, or a server
    that needs merged weights, fails with an exception from PEFT.

    ## Why
    Merging adds the update to the parameters of the layer, and some kinds of adapter need a
    parameter that not every layer has: BEFT trains a bias, and Llama's projections have none.

    ## Versions
    Depends on the installed PEFT; its merge was executed.

    ## Fix
    Keep base model and adapter separate (`PeftModel.from_pretrained`), or train a kind of adapter
    that can be merged.

    ## Links
    https://huggingface.co/docs/peft/developer_guides/model_merging
    """

    code = "LD629"
    name = "merging-refused"
    summary = "PEFT cannot merge these adapters into these layers."
    depth = "tiny"
    symptoms = (
        Symptom(r"Base layer has no bias, cannot merge bias adapter", "PEFT 0.21+"),
        Symptom(r"Merging/unmerging is not available|Merging is not supported\b"),
        Symptom(r"Merging LoRA layers is not supported|Merging LoRA with \w+ layers is not yet"),
        Symptom(
            r"output with shape \[[\d, ]+\] doesn't match the broadcast shape",
            raised_in=r"peft[\\/]tuners",
        ),
        Symptom(r"Impossible to merge LoRA with `lora_bias=True`"),
        Symptom(r"Cannot merge (?:\w+ )?layers when (?:the|base) model"),
        Symptom(
            r"GPT2 models are not supported for merging|Merging \w+ with INC layers is not yet"
        ),
        Symptom(r"ShadowPEFT cannot be merged|Cannot merge an active Arrow router adapter"),
        Symptom(r"QALoRA for GPTQ layers does not support '(?:get_delta_weight|merge\w*)'"),
        Symptom(r"required (?:to re-quantize the base layer after merging|for merge/unmerge)"),
        Symptom(
            r"layers? of type .{1,80} has no bias\. This means that merging LoRA weights won't"
        ),
        Symptom(r"does not support (?:safe )?merg(?:e yet|ing)\b|does not support 'safe_merge'"),
        Symptom(r"dequantization \(yet\), which is needed to support merging"),
        Symptom(
            r"The size of tensor a \([1-9]\d*\) must match the size of tensor b \([1-9]\d*\)",
            raised_in=r"peft[\\/]tuners",
            context=r"get_delta_weight|in merge\b",
        ),
    )
    examples = (
        Example(
            "broken",
            "arch:llama",
            {"peft_type": "BEFT", "target_modules": ["q_proj", "v_proj"]},
            requires={"peft": ">=0.21"},
            why="there is no bias that BEFT's could be added to",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        verification = judged(case)
        merge = verification.check("merge")
        if merge is None or merge.status != "failed" or "merge" in case.explained:
            return
        raised = merge.raised
        if raised is None or not raised.where.startswith("peft/"):
            return
        reload = verification.check("save-reload")
        yield self.finding(
            "warning",
            f"PEFT cannot merge these {case.recipe.peft_type} adapters: {raised}.",
            location=Location("recipe", "peft_type"),
            evidence=(
                Measurement("merge_and_unload", str(raised), "training contract"),
                Measurement("raised in", raised.where, "its traceback"),
                Measurement(
                    "saved and reloaded",
                    reload.status if reload else "not tried",
                    "training contract",
                ),
            ),
            proof=Proof("executed", "the trained adapters were merged by the installed PEFT"),
            fixes=(
                Fix(
                    "Keep base model and adapter separate and load both with "
                    "PeftModel.from_pretrained.",
                    "manual",
                ),
            ),
            explains=("merge",),
        )
