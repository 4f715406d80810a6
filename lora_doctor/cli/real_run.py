"""``lora-doctor run``: the command takes the place of this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_doctor.cli import streams
from lora_doctor.errors import InputError


def run(options: Mapping[str, Any], *, in_place: bool) -> int:
    """Start the command with the patches of the prescription. ``in_place``: in the place of this
    process; without, beside it.

    Raises:
        InputError: there is no command, or it is refused.
    """
    from lora_doctor.real_run.start import prepare, replace_this_process, start_and_wait

    if not options["command"]:
        raise InputError(
            "run: no command given; example: lora-doctor run -- accelerate launch train.py"
        )
    ready = prepare(options["command"], options["prescription"])
    names = ", ".join(ready.patches)
    streams.tell(
        f"lora-doctor: run: patches in force: {names}"
        if names
        else "lora-doctor: run: the prescription has no patches; the command runs unchanged"
    )
    streams.put_back()
    return replace_this_process(ready) if in_place else start_and_wait(ready)
