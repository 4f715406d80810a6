"""LD509: a generating model whose forward takes no labels and returns no loss."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
    quoted,
)

#: What a batch says of its loss when the model gave none and one was made from its outputs.
_MADE = "surrogate"


class NoLossToTrainOn(Rule):
    """The class generates text, but its forward takes no `labels` and computes no loss.

    ## What happens
    `Trainer` raises `The model did not return a loss from the inputs, only the following keys:
    logits`, or the wrapper's forward `got an unexpected keyword argument 'labels'`. Where the
    forward accepts any keyword, labels are silently ignored.

    ## Why
    The class is made for generating only: a drafter for assisted decoding, a diffusion model whose
    noise is sampled outside of it, a base class without a head. LoRA can be added and trained, but
    the class does not define the loss.

    ## Versions
    All; such classes are listed for AutoModelForCausalLM and AutoModelForImageTextToText from
    transformers 5 on.

    ## Fix
    Your own loss: `Trainer(compute_loss_func=...)`, or a training loop that calls `backward` on it.
    The training contract shows only that adapters learn with a loss that lora-doctor made from the
    outputs.

    ## Links
    https://huggingface.co/docs/transformers/main_classes/trainer
    """

    code = "LD509"
    name = "no-loss-to-train-on"
    summary = "The model's forward takes no labels and returns no loss."
    depth = "tiny"
    symptoms = (
        Symptom(r"[Mm]odel did not return a loss from the inputs"),
        Symptom(r"it only computes hidden states and does not accept any labels"),
    )
    told_as = ("The model returns no loss, its forward takes no labels.",)
    examples = (
        Example(
            "broken",
            "tests.models:generates_only",
            {"target_modules": ["q_proj", "v_proj"], "task_type": None},
            why="it generates, and has no labels",
        ),
        Example("healthy", "arch:llama", {"target_modules": ["q_proj", "v_proj"]}),
        Example("healthy", "arch:t5", {"target_modules": ["q", "v"]}),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        structure, seen = case.structure, case.verification
        if not structure.can_generate:
            return  # an encoder's loss is its user's own affair
        if not seen.batches:
            raise EvidenceError(seen.reason or "no batch was run")
        names = [item.name for item in structure.forward_parameters]
        labels = [name for name in names if "label" in name or "loss" in name]
        if labels or any(batch.loss != _MADE for batch in seen.batches):
            return
        dropped = "; **kwargs takes them and nothing reads them"
        yield self.finding(
            "warning",
            f"{structure.model_class}.forward takes no labels and returns no loss: without a "
            "loss of your own, a trainer stops at the first step.",
            location=Location("module", "model"),
            evidence=(
                Measurement("arguments of forward", quoted(names, 12)
                        + (dropped if structure.forward_takes_any else ""), "its signature"),
                Measurement("loss among the outputs", "none", f"{seen.depth} model, executed"),
            ),
            proof=Proof("executed", "the model was run, and returned no loss"),
            fixes=(
                Fix("Give the trainer a loss: Trainer(compute_loss_func=...).", "manual"),
            ),
        )  # fmt: skip
