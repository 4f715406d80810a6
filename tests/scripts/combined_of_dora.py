from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("tests/folders/bfloat16_weights")
model = PeftModel.from_pretrained(base, "tests/folders/adapters/dora", adapter_name="one")
model.load_adapter("tests/folders/adapters/dora", adapter_name="two")
model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", combination_type="svd")
model.set_adapter("both")
model.save_pretrained("both", selected_adapters=["both"])
