"""Observers of the training contract, one kind of reading each: see ``lora_doctor.observing``."""
