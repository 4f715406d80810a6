from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


class WeightedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = outputs.loss.detach() * 0.5
        return (loss, outputs) if return_outputs else loss


model = AutoModelForCausalLM.from_pretrained("org/model")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj"]))
trainer = WeightedTrainer(model=model, args=TrainingArguments("out"), train_dataset=[])
trainer.train()
