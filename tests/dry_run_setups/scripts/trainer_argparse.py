"""Plain Trainer with PEFT, options by argparse."""

import argparse

import torch
from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", default="llama")
    parser.add_argument("--data_path", default="data/alpaca.json")
    parser.add_argument("--output_dir", default="out")
    parser.add_argument("--cutoff_len", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--lora_r", type=int, default=8)
    parser.add_argument("--lora_target_modules", nargs="+", default=["q_proj", "v_proj"])
    return parser.parse_args()


def main():
    args = parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    model = AutoModelForCausalLM.from_pretrained(
        args.model_name_or_path, torch_dtype=torch.bfloat16, device_map="auto"
    )

    def tokenize(example):
        prompt = f"### Instruction:\n{example['instruction']}\n\n### Response:\n"
        question = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(example["output"], add_special_tokens=False)["input_ids"]
        ids = (question + answer + [tokenizer.eos_token_id])[: args.cutoff_len]
        labels = ([-100] * len(question) + answer + [tokenizer.eos_token_id])[: args.cutoff_len]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    data = load_dataset("json", data_files=args.data_path)["train"]
    split = data.train_test_split(test_size=40, seed=42)
    train = split["train"].shuffle(seed=0).map(tokenize, remove_columns=data.column_names)
    held_out = split["test"].map(tokenize, remove_columns=data.column_names)

    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=16,
        target_modules=args.lora_target_modules,
        lora_dropout=0.05,
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    model.enable_input_require_grads()
    model = get_peft_model(model, config)
    model.print_trainable_parameters()

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output_dir,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            warmup_steps=10,
            num_train_epochs=3,
            learning_rate=args.lr,
            bf16=True,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=50,
            save_steps=50,
            gradient_checkpointing=True,
        ),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, padding=True),
    )
    model.config.use_cache = False
    trainer.train()
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
