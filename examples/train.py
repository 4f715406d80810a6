"""Trains LoRA adapters on Phi-3 mini with the module names of Llama, which raises no error.

    lora-doctor dry-run -- python examples/train.py

`phi3-mini` has the config of the real model and a small tokenizer, and no weights: a dry run needs
none. Without it the script stops at `from_pretrained`.
"""

import argparse
import json
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)


def example(tokenizer, row):
    """Token ids of a question and its answer; the loss is taken on the answer."""
    prompt = tokenizer(row["question"] + "\n")["input_ids"]
    answer = tokenizer(row["answer"])["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="examples/phi3-mini")
    parser.add_argument("--rows", default="examples/rows.jsonl")
    parser.add_argument("--output", default="out")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)
    config = LoraConfig(
        r=16,
        lora_alpha=32,
        task_type="CAUSAL_LM",
        target_modules=[
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        ],
    )  # fmt: skip
    model = get_peft_model(model, config)
    rows = [json.loads(line) for line in Path(args.rows).read_text(encoding="utf-8").splitlines()]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(args.output, learning_rate=2e-4, per_device_train_batch_size=4),
        train_dataset=[example(tokenizer, row) for row in rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    model.save_pretrained(args.output)


if __name__ == "__main__":
    main()
