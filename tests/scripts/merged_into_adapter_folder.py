from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("tests/folders/bfloat16_weights")
model = PeftModel.from_pretrained(base, "tests/folders/adapters/plain")
model = model.merge_and_unload()
model.save_pretrained("tests/folders/adapters/plain/")
