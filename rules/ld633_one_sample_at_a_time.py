"""LD633: a model that fails on batches of several samples: a classifier without a padding id."""

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
    sets_padding_id,
)

_CLASSIFIER = {
    "model_class": "AutoModelForSequenceClassification",
    "task_type": "SEQ_CLS",
    "target_modules": ["q_proj", "v_proj"],
}
_KEY = "per_device_train_batch_size"


class OneSampleAtATime(Rule):
    """With this config, the model raises an error on a batch of two samples and runs on one.

    ## What happens
    `ValueError: Cannot handle batch sizes > 1 if no padding token is defined.` at the first step.
    The Trainer's default batch size is 8.

    ## Why
    A classifier on a language model reads the last token that is not padding, and finds it by
    `config.pad_token_id`. Llama, Mistral, Qwen, GPT-2 and others are published without one. Setting
    only `tokenizer.pad_token` does not help, because the model reads its own config.

    ## Versions
    All. Whether the class needs one is tested by running its forward on two samples.

    ## Fix
    `model.config.pad_token_id = tokenizer.pad_token_id`, after the tokenizer has a padding token.
    A script that already does this is recognised if it is what is checked.

    ## Links
    https://huggingface.co/docs/transformers/model_doc/llama
    """

    code = "LD633"
    name = "one-sample-at-a-time"
    summary = "The model fails on batches of several samples: its config has no padding id."
    depth = "tiny"
    symptoms = (Symptom(r"Cannot handle batch sizes? > 1 if no padding token is defined"),)
    told_as = (
        "The classification model works with batch size 1 only, no padding token is defined.",
    )
    examples = (
        Example("broken", "arch:llama", _CLASSIFIER, why="Llama has no pad_token_id"),
        Example("healthy", "tests/folders/base_without_head", _CLASSIFIER, why="it has one"),
        Example("healthy", "arch:llama", {**_CLASSIFIER, _KEY: 1}, why="a batch size of one"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        seen = case.verification
        alone = [batch for batch in seen.batches if batch.one_sample]
        size = case.recipe.get(_KEY)
        # A framework sets the padding id of the model.
        if not alone or size == 1 or case.recipe.set_up is not None:
            return
        if case.has("program") and sets_padding_id(case.program):
            return
        model = case.structure.model_class
        yield self.finding(
            "warning",
            f"{model} raises an error on more than one sample, because its config has no padding "
            "id to find the end of each one.",
            location=Location("file", "config.json"),
            evidence=(
                Measurement("forward on two samples", alone[0].one_sample[:200],
                            f"{seen.depth} model"),
                Measurement("forward on one sample", "runs", f"{seen.depth} model"),
                Measurement(_KEY, "not set (the Trainer's default is 8)" if size is None else size,
                            "recipe"),
            ),
            proof=Proof("executed", "the forward was run on two samples and on one"),
            fixes=(
                Fix("Set model.config.pad_token_id = tokenizer.pad_token_id in the script, after "
                    "tokenizer.pad_token.", "manual"),
            ),
        )  # fmt: skip
