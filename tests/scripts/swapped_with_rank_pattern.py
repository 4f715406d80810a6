from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("tests/folders/bfloat16_weights")
model = PeftModel.from_pretrained(base, "tests/folders/adapters/plain", adapter_name="first")
hotswap_adapter(model, "tests/folders/adapters/pattern", adapter_name="first")
