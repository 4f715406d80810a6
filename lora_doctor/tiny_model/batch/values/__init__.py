"""Values of forward arguments, one by one."""
