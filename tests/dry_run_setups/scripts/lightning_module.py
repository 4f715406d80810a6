"""A LightningModule with PEFT inside, stopped by what it is validated on."""

import json

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer


class ChatData(L.LightningDataModule):
    def __init__(self, tokenizer, batch_size=4):
        super().__init__()
        self.tokenizer, self.batch_size = tokenizer, batch_size

    def setup(self, stage):
        with open("data/chats.jsonl") as file:
            rows = [json.loads(line)["messages"] for line in file]
        self.train, self.held_out = rows[:-40], rows[-40:]

    def collate(self, rows):
        texts = [self.tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
        batch = self.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return dict(batch)

    def train_dataloader(self):
        return DataLoader(
            self.train, batch_size=self.batch_size, shuffle=True, collate_fn=self.collate
        )

    def val_dataloader(self):
        return DataLoader(self.held_out, batch_size=self.batch_size, collate_fn=self.collate)


class ChatModule(L.LightningModule):
    def __init__(self, name, lr=2e-4):
        super().__init__()
        self.save_hyperparameters()
        base = AutoModelForCausalLM.from_pretrained(name)
        self.model = get_peft_model(
            base,
            LoraConfig(
                r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
            ),
        )

    def training_step(self, batch, batch_index):
        loss = self.model(**batch).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_index):
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.hparams.lr)


def main():
    L.seed_everything(1)
    tokenizer = AutoTokenizer.from_pretrained("llama")
    module = ChatModule("llama")
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="auto",
        devices=1,
        precision="32-true",
        gradient_clip_val=1.0,
        default_root_dir="lightning",
        logger=False,
        callbacks=[EarlyStopping("val_loss"), ModelCheckpoint("best", monitor="val_loss")],
    )
    trainer.fit(module, ChatData(tokenizer))
    assert trainer.checkpoint_callback.best_model_path
    module.model.save_pretrained("out")


if __name__ == "__main__":
    main()
