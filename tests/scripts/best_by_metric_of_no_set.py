from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("examples/phi3-mini")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["qkv_proj", "o_proj"]))
arguments = TrainingArguments(
    "out", save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True
)
Trainer(model, arguments, train_dataset=[], eval_dataset={"questions": [], "answers": []})
