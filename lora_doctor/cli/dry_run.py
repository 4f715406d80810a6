"""``lora-doctor dry-run``: from its options to a diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lora_doctor.cli import streams
from lora_doctor.errors import InputError

if TYPE_CHECKING:
    from lora_doctor.results.diagnosis import Diagnosis


def run(options: Mapping[str, Any], tell: Callable[[str], None]) -> Diagnosis:
    """The diagnosis of the command.

    Raises:
        InputError: no command was given, or it cannot be dry-run.
    """
    from lora_doctor.cli.arguments import dry_run_options
    from lora_doctor.dry_run.judge import dry_run

    words = options["command"]
    if not words:
        raise InputError(
            "dry-run: no command given; example: lora-doctor dry-run -- python train.py"
        )
    return dry_run(
        words, dry_run_options(options), tell, lambda run: streams.tell(f"runs: {' '.join(run)}")
    )
