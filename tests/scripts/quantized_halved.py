from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained(
    "facebook/opt-125m", quantization_config=BitsAndBytesConfig(load_in_4bit=True)
)
model = prepare_model_for_kbit_training(model.half())
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
trainer = Trainer(model, TrainingArguments("outputs"), train_dataset=[])
trainer.train()
