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
#: Two adapters, each with a step of its own in turn.
ADAPTERS_IN_TURN = (
    MODEL
    + """
import torch
from torch.utils.data import DataLoader

model.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
model.train()
optimizer = torch.optim.AdamW([p for name, p in model.named_parameters() if p.requires_grad])
rows = [torch.arange(3, 11) + n for n in range(16)]
for ids in DataLoader(rows, batch_size=2):
    for name in ("second", "default"):
        model.set_adapter(name)
        model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
)
#: ``LOOP``, of processes that train together.
DDP_LOOP = LOOP.replace(
    "wrapped = model.train()",
    """torch.distributed.init_process_group()
wrapped = torch.nn.parallel.DistributedDataParallel(model.train())""",
)
#: The same, with FSDP 1; ``PREPARED`` is the model that it gets.
FSDP_LOOP = (
    DDP_LOOP.replace(
        "torch.nn.parallel.DistributedDataParallel(model.train())",
        "torch.distributed.fsdp.FullyShardedDataParallel(\n"
        "    PREPARED.train(), use_orig_params=True, device_id=torch.cuda.current_device())",
    )
    .replace("import torch\n", "import torch\nimport torch.distributed.fsdp\n", 1)
    .replace("model.parameters()", "wrapped.parameters()")
)
#: A classifier of two classes, and rows of both.
CLASSES = """\
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification, BertConfig, Trainer, TrainingArguments,
    default_data_collator,
)

config = BertConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=64, num_labels=2,
)
model = get_peft_model(
    AutoModelForSequenceClassification.from_config(config),
    LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS"),
)
rows = [{"input_ids": [1, *range(5 + n, 15 + n), 2], "labels": n % 2} for n in range(64)]
Trainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=4, max_steps=20, report_to=[]),
    train_dataset=rows,
    data_collator=default_data_collator,
).train()
"""
#: Pairs of answers, each set before the other in a batch, and the loss of a reward model.
PAIRS = (
    MODEL
    + """
import torch


def row(n):
    answer = [*range(5 + n, 15 + n)]
    return {"chosen_ids": [1, *answer, 2], "rejected_ids": [1, *REJECTED, 2]}


def collate(rows):
    pairs = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
    return {"input_ids": torch.tensor(pairs), "attention_mask": torch.ones(len(pairs), 12).long()}


class Preferences(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **more):
        logits = model(**inputs).logits[:, :-1].log_softmax(-1)
        written = logits.gather(-1, inputs["input_ids"][:, 1:, None])
        chosen, rejected = written.sum((1, 2)).chunk(2)
        return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


arguments = TrainingArguments(
    "out", per_device_train_batch_size=2, remove_unused_columns=False, report_to=[]
)
rows = [row(n) for n in range(40)]
Preferences(model, arguments, train_dataset=rows, data_collator=collate).train()
"""
)
#: A model that writes what it trains on, four completions of each prompt.
REWARDED = (
    MODEL
    + """
import torch


def reward(prompts, completions, **columns):
    return [REWARD for completion in completions]


class Rewarded(Trainer):
    reward_funcs = [reward]

    def compute_loss(self, model, inputs, return_outputs=False, **more):
        ids = inputs["input_ids"].repeat_interleave(4, 0)
        with torch.no_grad():
            written = model.generate(input_ids=ids, do_sample=True, max_new_tokens=8)
        completions = [" ".join(map(str, one)) for one in written[:, ids.shape[1]:].tolist()]
        prompts = [str(one) for one in ids.tolist()]
        given = torch.tensor(self.reward_funcs[0](prompts=prompts, completions=completions))
        advantages = (given.view(-1, 4) - given.view(-1, 4).mean(1, keepdim=True)).view(-1)
        logits = model(input_ids=written).logits[:, :-1].log_softmax(-1)
        return -(logits.gather(-1, written[:, 1:, None]).sum((1, 2)) * advantages).mean()


rows = [{"input_ids": [1, *range(5 + n, 10 + n)]} for n in range(40)]
arguments = TrainingArguments("out", per_device_train_batch_size=2, report_to=[])
Rewarded(model, arguments, train_dataset=rows, data_collator=default_data_collator).train()
"""
)
