"""LD921: packed samples attend to each other."""

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
from lora_doctor.rules._dry_run_script import MODEL

_PACKED = """
import torch

rows = [[1, *range(5 + n % 400, 15 + n % 400), 2] for n in range(200)]


def packed(chosen):
    ids = torch.tensor([[token for row in chosen for token in row["ids"]]])
    places = torch.tensor([[place for row in chosen for place in range(len(row["ids"]))]])
    batch = {"input_ids": ids, "labels": ids.clone(), "position_ids": places}
    MASK
    return batch


Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=4, remove_unused_columns=False),
    train_dataset=[{"ids": row} for row in rows],
    data_collator=packed,
).train()
"""


class PackedSamplesSeeEachOther(Rule):
    """A row of a batch contains several packed samples, and a sample attends to the ones before it.

    ## What happens
    Nothing is raised. Each answer is learned after unrelated texts; the loss may even look better.

    ## Why
    Restarting position ids mark where samples begin, and only some attention implementations use
    them: flash attention always, transformers' own masks only from 4.53 on, without an
    `attention_mask` and without a cache, which the Trainer turns off from 5.0 on. Layers with a
    recurrent state (Mamba and similar) carry it across the boundary unless they get the boundaries.

    Found by execution: in a batch of the run the tokens of the first sample are reordered, and the
    logits of the second sample change.

    ## Versions
    All. A run with flash attention is not judged where flash attention cannot be loaded.

    ## Fix
    Flash attention; or a collator that returns `position_ids` and no `attention_mask` (transformers
    4.53 and later), with `model.config.use_cache = False` up to 4.57 and in loops of your own; or
    no packing. It changes what the model learns.

    ## Links
    https://huggingface.co/docs/trl/reducing_memory_usage
    """

    code = "LD921"
    name = "packed-samples-see-each-other"
    summary = "Packed samples attend to each other."
    depth = "static"
    descriptions = (
        Symptom(r"\bpack(?:ed|ing)\b.{0,80}\b(?:contaminat|leak|attend|see each other)"),
    )
    told_as = ("Packed samples attend to each other.",)
    examples = (
        Example(
            "broken",
            "",
            script=MODEL
            + _PACKED.replace("MASK", 'batch["attention_mask"] = torch.ones_like(ids)'),
            why="an attention mask of ones makes the model ignore where positions begin anew",
        ),
        Example(
            "broken",
            "",
            script=MODEL + _PACKED.replace("MASK", "pass"),
            requires={"transformers": ">=4.53,<5"},
            why="beside the cache that a forward keeps unless it is told not to",
        ),
        Example(
            "healthy",
            "",
            script=MODEL + "model.config.use_cache = False\n" + _PACKED.replace("MASK", "pass"),
            requires={"transformers": ">=4.53"},
            why="positions alone are read as borders; 4.x reads them where there is no cache",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        run = case.dry_run
        packed = run.packed
        asked = str(case.recipe.get("attn_implementation") or "")
        if packed is None or not packed.seen or "flash" in asked:
            return
        source = "the model of the run, on one of its batches"
        fixes = [Fix("Use flash attention for packed batches, or do not pack.", "manual")]
        if packed.by_cache:
            fixes.insert(0, Fix("Train without a cache: model.config.use_cache = False.", "manual"))
        elif "attention_mask" in packed.arguments:
            fixes.insert(0, Fix("Do not return attention_mask for packed batches.", "manual"))
        yield self.finding(
            "warning",
            f"{packed.samples} samples are packed into one row of {packed.tokens:,} tokens, "
            "and each attends to those before it: reordering the tokens of the first changes "
            "the logits of the second.",
            location=Location("environment", "packed batches"),
            evidence=(
                Measurement("samples in a row", packed.samples, source),
                Measurement("change of a logit of the second sample", packed.change, source),
                Measurement("largest logit there", packed.size, source),
                Measurement("attention", run.ran.get("attention", "not known"), "what ran"),
                Measurement("passed with the tokens", list(packed.arguments), source),
            ),
            proof=Proof("executed", source),
            fixes=tuple(fixes),
        )
