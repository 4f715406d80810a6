"""Two models in one loop: a teacher that is frozen, and a student with adapters."""

import torch
import torch.nn.functional as F
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorWithPadding

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tokenizer = AutoTokenizer.from_pretrained("llama")
teacher = AutoModelForCausalLM.from_pretrained("llama", dtype=torch.bfloat16).to(device).eval()
teacher.requires_grad_(False)
student = AutoModelForCausalLM.from_pretrained("llama-base", dtype=torch.float32)
student = get_peft_model(
    student, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
).to(device)

data = load_dataset("json", data_files="data/chats.jsonl", split="train")
data = data.map(
    lambda row: tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False)),
    remove_columns=["messages"],
)
loader = DataLoader(
    data, batch_size=4, shuffle=True, collate_fn=DataCollatorWithPadding(tokenizer)
)
optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-4)
student.train()
losses = []
for batch in loader:
    batch = batch.to(device)
    with torch.no_grad():
        wanted = teacher(**batch).logits.float()
    made = student(**batch).logits.float()
    loss = F.kl_div(
        F.log_softmax(made / 2, -1), F.softmax(wanted / 2, -1), reduction="batchmean"
    )
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print("mean", sum(losses) / len(losses))
student.save_pretrained("student")
