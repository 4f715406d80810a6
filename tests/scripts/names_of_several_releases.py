"""Imports a name of older releases of PEFT where there is one, else the name of newer ones."""

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

try:
    from peft import prepare_model_for_int8_training as prepare
except ImportError:
    from peft import prepare_model_for_kbit_training as prepare

model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
model = get_peft_model(prepare(model), LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
