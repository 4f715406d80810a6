"""One file per failure mode. To add a rule, copy a file and change it: it is found by its place."""

if __name__ == "rules":  # a checkout is the working directory: it would be a second copy of all
    raise ImportError("the package of the rules is lora_doctor.rules")
