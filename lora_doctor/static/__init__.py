"""What is known at depth `static`: files and the installed packages, read and never run.

No torch: `lora_doctor.evidence` has what is found out by building and running a model.
"""
