"""What is found out by building and running a model: one file per kind of evidence.

`lora_doctor.static` has what files and the installed packages say without that.
"""
