from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments


class PrintLoss(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        print(state.global_step, logs)

    def on_train_end(self, *args, **kwargs):
        print("done")


def argmax(logits, labels):
    return logits.argmax(dim=-1)


def accuracy(prediction, ignored=-100):
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}


model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
trainer = Trainer(
    model,
    TrainingArguments("outputs"),
    train_dataset=[],
    eval_dataset=[],
    callbacks=[PrintLoss()],
    compute_metrics=accuracy,
    preprocess_logits_for_metrics=argmax,
)
trainer.train()
