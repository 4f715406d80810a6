"""What the examples of rules about a training command begin with."""

from __future__ import annotations

#: A small Llama with adapters: ``model``; the names that scripts need are imported.
MODEL = """\
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments, default_data_collator
)

config = LlamaConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
)
model = get_peft_model(
    AutoModelForCausalLM.from_config(config),
    LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
"""
#: A loop for one process, in which each process has rows of its own: ``wrapped`` trains.
LOOP = """
import os

import torch
from torch.utils.data import DataLoader

torch.manual_seed(0)
rank = int(os.environ.get("RANK", "0"))
wrapped = model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
rows = [torch.arange(3, 11) + 100 * rank + n for n in range(8)]
for ids in DataLoader(rows, batch_size=2):
    wrapped(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
#: The same, of processes that train together.
DDP_LOOP = LOOP.replace(
    "wrapped = model.train()",
    """torch.distributed.init_process_group()
wrapped = torch.nn.parallel.DistributedDataParallel(model.train())""",
)
