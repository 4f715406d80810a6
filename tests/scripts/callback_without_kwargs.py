from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments


class PrintLoss(TrainerCallback):
    def on_log(self, args, state, control, logs=None):
        print(state.global_step, logs)


model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
trainer = Trainer(model, TrainingArguments("outputs"), train_dataset=[], callbacks=[PrintLoss()])
trainer.train()
