"""An apply of a fix that was broken off."""

from __future__ import annotations

from typing import Any

from lora_doctor.cli import streams


def tell_of_unfinished(options: dict[str, Any]) -> None:
    """A recipe that an apply was changing when it was killed may not be what the user takes it
    for; ``fix --apply`` refuses it."""
    if options["recipe_file"] and not options.get("write"):
        from pathlib import Path

        from lora_doctor.prescription.write_fix import Plan

        left = Plan(Path(options["recipe_file"]), Path()).unfinished()
        if left:
            streams.tell(f"lora-doctor: note: {left}")
