from peft import AdaLoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Allocation(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **more):
        model.base_model.update_and_allocate(state.global_step)


model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1")
config = AdaLoraConfig(
    init_r=12,
    target_r=4,
    tinit=20,
    tfinal=20,
    deltaT=10,
    total_step=200,
    target_modules=["q_proj", "v_proj"],
)
model = get_peft_model(model, config)
trainer = Trainer(
    model=model,
    args=TrainingArguments("out", max_steps=200),
    train_dataset=[],
    callbacks=[Allocation()],
)
trainer.train()
