"""Everything by Hydra: conf/config.yaml, overridden on the command line."""

import hydra
from datasets import load_dataset
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    print(OmegaConf.to_yaml(cfg))
    tokenizer = AutoTokenizer.from_pretrained(cfg.model.name)
    model = AutoModelForCausalLM.from_pretrained(cfg.model.name, dtype=cfg.model.dtype)
    lora = OmegaConf.to_container(cfg.lora, resolve=True)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))

    def tokenize(row):
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        return tokenizer(text, truncation=True, max_length=cfg.data.max_length)

    data = load_dataset("json", data_files=cfg.data.file, split="train")
    data = data.map(tokenize, remove_columns=data.column_names)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**OmegaConf.to_container(cfg.training, resolve=True)),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
