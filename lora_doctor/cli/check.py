"""``lora-doctor check`` of one set-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lora_doctor.cli import streams
from lora_doctor.cli.arguments import check_options, recipe_of
from lora_doctor.cli.output import report, with_next_command, with_progress
from lora_doctor.cli.unfinished import tell_of_unfinished
from lora_doctor.text import visible

if TYPE_CHECKING:
    from lora_doctor.api.options import CheckOptions
    from lora_doctor.results.diagnosis import Diagnosis


def run(options: dict[str, Any]) -> int:
    """Diagnose a recipe; returns the exit code."""
    from lora_doctor.cli.arguments import describes_weights
    from lora_doctor.engine.saved_adapter import of_trained_config

    tell_of_unfinished(options)

    def ask(tell: Callable[[str], None]) -> Diagnosis:
        call_options = check_options(options, tell)
        found = _asked_or_cached(options, call_options)
        return of_trained_config(found) if describes_weights(options) else found

    diagnosis = with_progress(ask)
    return report(with_next_command(diagnosis, options), options)


def _asked_or_cached(options: dict[str, Any], call_options: CheckOptions) -> Diagnosis:
    """The answer of ``check``, which may be stored."""
    from lora_doctor import api

    recipe = recipe_of(options)
    if options["no_cache"]:
        return api.check(options["model"], recipe, **call_options)
    from lora_doctor.api.cache_store import user_cache
    from lora_doctor.api.cached import check_with_cache

    def tell(text: str) -> None:
        if options["verbose"]:
            streams.tell(f"lora-doctor: cache: {visible(text)}")

    found = check_with_cache(options["model"], recipe, call_options, user_cache(), tell)
    if options["output_format"] != "full":  # which has the note
        for note in found.notes:
            if note.kind == "cached":
                streams.tell(f"lora-doctor: {note.text}")
    return found
