from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


def accuracy(prediction):
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return float(right.mean())


model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
args = TrainingArguments("outputs", eval_strategy="epoch")
trainer = Trainer(model, args, train_dataset=[], eval_dataset=[], compute_metrics=accuracy)
trainer.train()
