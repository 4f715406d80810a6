from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("tests/folders/bfloat16_weights")
model = PeftModel.from_pretrained(base, "tests/folders/adapters/plain", adapter_name="one")
model.load_adapter("tests/folders/adapters/other_rank", adapter_name="two")
model = model.merge_and_unload(adapter_names=["one", "two"])
model.save_pretrained("merged")
