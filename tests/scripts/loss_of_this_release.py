import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments


class Weighted(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weights = torch.tensor([1.0, 3.0], device=labels.device)
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels, weights)
        return (loss, outputs) if return_outputs else loss


model = AutoModelForSequenceClassification.from_pretrained("FacebookAI/roberta-base")
config = LoraConfig(r=8, target_modules=["query", "value"], task_type="SEQ_CLS")
trainer = Weighted(get_peft_model(model, config), TrainingArguments("outputs"), train_dataset=[])
trainer.train()
