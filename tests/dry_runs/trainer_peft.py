"""A plain Trainer with PEFT, as in PEFT's own examples."""

import argparse

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator


class Numbers(Dataset):
    def __len__(self):
        return 5000

    def __getitem__(self, index):
        ids = [1, *((index + n) % 30000 + 3 for n in range(14)), 2]
        return {"input_ids": ids, "attention_mask": [1] * 16, "labels": ids}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(
        "model", torch_dtype=torch.bfloat16, device_map="auto"
    )
    config = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=options.target,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    model.print_trainable_parameters()
    arguments = TrainingArguments(
        output_dir="out",
        per_device_train_batch_size=4,
        learning_rate=options.learning_rate,
        num_train_epochs=1,
        warmup_steps=10,
        bf16=True,
        logging_steps=1,
        save_strategy="epoch",
        report_to="all",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Numbers(),
        data_collator=default_data_collator,
    )
    trainer.train()
    trainer.save_model("out")
    model.peft_config["default"].save_pretrained("adapter_config")
    assert PeftConfig.from_pretrained("adapter_config").r == model.peft_config["default"].r
    model.merge_and_unload().save_pretrained("merged")
    AutoModelForCausalLM.from_pretrained("merged")
    print("THE SCRIPT CAME TO ITS END")


if __name__ == "__main__":
    main()
