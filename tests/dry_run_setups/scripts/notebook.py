# %%
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

# %%
model = AutoModelForCausalLM.from_pretrained("llama", dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained("llama")
model.get_memory_footprint()

# %%
model = get_peft_model(
    model,
    LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
               task_type="CAUSAL_LM"),
)
model.print_trainable_parameters()

# %%
data = load_dataset("json", data_files="data/chats.jsonl", split="train")
data[0]["messages"]

# %%
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=data,
    args=SFTConfig(
        output_dir="outputs", per_device_train_batch_size=2, max_steps=60, warmup_steps=5,
        learning_rate=2e-4, assistant_only_loss=True, report_to="none", eos_token="<|im_end|>",
    ),
)
stats = trainer.train()

# %%
print(stats.metrics)
model.save_pretrained("lora_model")
tokenizer.save_pretrained("lora_model")
