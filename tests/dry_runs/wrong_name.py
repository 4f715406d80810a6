"""A helper of the user's asks PEFT for layers that the model does not have."""

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def with_adapters(model):
    config = LoraConfig(r=8, target_modules=["query_key_value"], task_type="CAUSAL_LM")
    return get_peft_model(model, config)


with_adapters(AutoModelForCausalLM.from_pretrained("model"))
