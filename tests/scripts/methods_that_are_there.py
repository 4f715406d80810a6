from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained(
    "facebook/opt-125m", quantization_config=BitsAndBytesConfig(load_in_4bit=True)
)
model.gradient_checkpointing_enable()
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
model.print_trainable_parameters()
trainer = Trainer(model, TrainingArguments("outputs"), train_dataset=[])
trainer.train()
trainer.save_model("adapter")
model.merge_and_unload()
