"""Trainer, its arguments and the script's own dataclasses from the command line or a JSON file."""

import sys
from dataclasses import dataclass, field

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class ModelArguments:
    model_name_or_path: str = field(default="llama", metadata={"help": "Base model."})
    lora_r: int = 8
    lora_alpha: int = 16
    lora_target: str = "q_proj,k_proj,v_proj,o_proj"
    use_pad: str = "<pad>"


@dataclass
class DataArguments:
    train_file: str = "data/chats.jsonl"
    max_length: int = 128


def main():
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(sys.argv[1])
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    tokenizer.pad_token = model_args.use_pad

    def tokenize(rows):
        texts = [
            tokenizer.apply_chat_template(messages, tokenize=False)
            for messages in rows["messages"]
        ]
        return tokenizer(
            texts, truncation=True, max_length=data_args.max_length, add_special_tokens=False
        )

    with training_args.main_process_first(desc="tokenizing"):
        data = load_dataset("json", data_files=data_args.train_file, split="train")
        data = data.map(tokenize, batched=True, remove_columns=["messages"])

    model = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, dtype="bfloat16")
    model = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=model_args.lora_r,
            lora_alpha=model_args.lora_alpha,
            target_modules=model_args.lora_target.split(","),
        ),
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()


if __name__ == "__main__":
    main()
