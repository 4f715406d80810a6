import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1")
prepare_model_for_compiled_hotswap(model, target_rank=64)
model = PeftModel.from_pretrained(model, "adapters/first")
model = torch.compile(model)
hotswap_adapter(model, "adapters/second", adapter_name="default")
