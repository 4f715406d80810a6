"""The class at full size: built on the meta device, its towers, the adapters that PEFT injects."""
