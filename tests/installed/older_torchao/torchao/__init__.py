"""A torchao that PEFT refuses by its version."""
