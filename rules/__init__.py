"""One file per failure mode. To add a rule, copy a file and change it: it is found by its place."""
