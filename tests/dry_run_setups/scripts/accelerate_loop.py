"""A loop with accelerate: accumulation, clipping, a schedule, evaluation after each epoch."""

import argparse
import math

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    get_scheduler,
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--num_epochs", type=int, default=2)
    parser.add_argument("--mixed_precision", default="bf16")
    args = parser.parse_args()

    accelerator = Accelerator(
        gradient_accumulation_steps=4, mixed_precision=args.mixed_precision, log_with="all"
    )
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained("llama")

    def tokenize(rows):
        texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in rows["messages"]]
        return tokenizer(texts, truncation=True, max_length=128)

    with accelerator.main_process_first():
        files = {"train": "data/chats.jsonl", "validation": "data/held_out.jsonl"}
        raw = load_dataset("json", data_files=files)
        tokenized = raw.map(tokenize, batched=True, remove_columns=["messages"])
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    train_loader = DataLoader(
        tokenized["train"], shuffle=True, collate_fn=collator, batch_size=4
    )
    eval_loader = DataLoader(tokenized["validation"], collate_fn=collator, batch_size=4)

    model = AutoModelForCausalLM.from_pretrained("llama")
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=args.lr
    )
    steps = math.ceil(len(train_loader) / 4) * args.num_epochs
    scheduler = get_scheduler(
        "cosine", optimizer, num_warmup_steps=5, num_training_steps=steps
    )
    model, optimizer, train_loader, eval_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, eval_loader, scheduler
    )
    progress = tqdm(range(steps), disable=not accelerator.is_local_main_process)
    for epoch in range(args.num_epochs):
        model.train()
        total = 0.0
        for batch in train_loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                total += loss.detach().float()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    progress.update(1)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        model.eval()
        losses = []
        for batch in eval_loader:
            with torch.no_grad():
                loss = model(**batch).loss
            losses.append(accelerator.gather_for_metrics(loss.repeat(4)))
        perplexity = math.exp(min(torch.cat(losses).mean().item(), 20))
        accelerator.print(f"{epoch=}: {perplexity=} {total / len(train_loader)=}")
        accelerator.save_state(f"states/{epoch}")
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(model).save_pretrained(
        "out", is_main_process=accelerator.is_main_process, save_function=accelerator.save
    )
    accelerator.end_training()


if __name__ == "__main__":
    main()
