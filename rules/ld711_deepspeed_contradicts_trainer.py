"""LD711: the DeepSpeed config contradicts the arguments of the Trainer."""

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

#: DeepSpeed's value to the recipe's key, as transformers' ``HfTrainerDeepSpeedConfig`` compares.
_SAME = {
    ("train_micro_batch_size_per_gpu",): "per_device_train_batch_size",
    ("gradient_accumulation_steps",): "gradient_accumulation_steps",
    ("optimizer", "params", "lr"): "learning_rate",
    ("fp16", "enabled"): "fp16",
    ("bf16", "enabled"): "bf16",
}


class DeepspeedContradictsTrainer(Rule):
    """The DeepSpeed config contradicts the arguments of the Trainer.

    ## What happens
    `ValueError: Please correct the following DeepSpeed config values that mismatch
    TrainingArguments values`, before training.

    ## Why
    transformers compares the values in the file with its own arguments, and fills in those that are
    `auto`.

    ## Versions
    All versions with DeepSpeed.

    ## Fix
    `auto` in the DeepSpeed config.

    ## Links
    https://huggingface.co/docs/transformers/deepspeed
    """

    code = "LD711"
    name = "deepspeed-contradicts-trainer"
    summary = "The DeepSpeed config contradicts the arguments of the Trainer."
    depth = "static"
    symptoms = (
        Symptom(r"DeepSpeed config values that mismatch (?:TrainingArguments|kwargs) values"),
    )
    examples = (
        Example("broken", "tests/set_ups/deepspeed/contradicts.yaml", depth="static"),
        Example("healthy", "tests/set_ups/deepspeed/agrees.yaml", depth="meta"),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        files = case.side_files
        if files.deepspeed is None:
            for name, reason in files.missing.items():
                raise EvidenceError(f"{name}: {reason}", remedy="file")
            return
        others = []
        for path, key in _SAME.items():
            value: object = files.deepspeed
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            ours = case.recipe.get(key, False if key in ("fp16", "bf16") else None)
            if value not in (None, "auto") and ours is not None and value != ours:
                others.append((".".join(path), value, key, ours))
        if not others:
            return
        place = case.set_up.places.get("deepspeed")
        yield self.finding(
            "error",
            f"{files.deepspeed_file} sets {quoted((name for name, *_ in others))} differently "
            "from the Trainer's arguments, which transformers may refuse.",
            location=Location("file", place.file, place.line) if place
            else Location("file", files.deepspeed_file),
            evidence=tuple(
                Measurement(name, f"{value}, {key} is {ours}", files.deepspeed_file)
                for name, value, key, ours in others
            ),
            proof=Proof("inferred", "compared in the same way as transformers' "
                                    "HfTrainerDeepSpeedConfig, which was not run"),
            fixes=(
                Fix(f"Write \"auto\" for {quoted(name for name, *_ in others)} in "
                    f"{files.deepspeed_file}.", "manual"),
            ),
        )  # fmt: skip
