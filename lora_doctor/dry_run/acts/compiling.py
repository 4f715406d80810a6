"""What bitsandbytes compiles when it is imported is compiled at its first call: of all that a dry
run imports, `torch._inductor` is the largest part that its few steps on a CPU never use."""

from __future__ import annotations

from lora_doctor.dry_run.acts.acting import Acting
from lora_doctor.sandbox.deferred import compiling_when_called


def prepare(acting: Acting) -> None:
    """Around the import of bitsandbytes; `torch.compile` is as before when it is over."""
    acting.hooks.within("bitsandbytes", compiling_when_called)
