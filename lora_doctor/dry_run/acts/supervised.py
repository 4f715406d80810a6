"""The tokenizer that a trainer's batches are made with: where an answer ends, and what pads."""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_doctor.dry_run.acts import small_models
from lora_doctor.dry_run.acts.acting import Acting


def tell_tokenizer(acting: Acting, trainer: Any, model: Any) -> None:
    """What is known of the trainer's tokenizer when training starts, with all that the script has
    set by then. Nothing where the trainer has none, or one that cannot be asked."""
    tokenizer = _tokenizer(trainer)
    if tokenizer is not None:
        _tell(acting, tokenizer, model)


def tell_loaded_tokenizer(acting: Acting, model: Any) -> None:
    """The same where no trainer has one: of the tokenizer that was loaded from where the model was,
    or of the only one that was loaded. Nothing where it was told already."""
    if acting.seen("tokenizer_facts") or acting.seen("no_tokenizer"):
        return
    there = [found for found in (one() for one in acting.tokenizers) if found is not None]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = [one for one in there if str(one.name_or_path) == small_models.name_of(base)]
    if own or len({str(one.name_or_path) for one in there}) == 1:
        _tell(acting, (own or there)[-1], base)


def _tell(acting: Acting, tokenizer: Any, model: Any) -> None:
    from lora_doctor.supervision.tokenizer import describe

    with acting.ours():
        try:
            stops = _stop_ids(model, tokenizer)
            facts = dataclasses.replace(describe(tokenizer, stops), stop_known=stops is not None)
        except Exception as error:  # noqa: BLE001 - a tokenizer of the user's own
            acting.journal.tell("no_tokenizer", reason=f"{type(error).__name__}: {error}")
            return
    acting.journal.tell("tokenizer_facts", facts=dataclasses.asdict(facts))


def _tokenizer(trainer: Any) -> Any:
    """The trainer's, a processor's, or the collator's; ``tokenizer`` of newer trainers warns, so
    that it is asked where it is an attribute of its own."""
    own = vars(trainer)
    collator = own.get("data_collator")
    for found in (
        own.get("processing_class"), own.get("tokenizer"), getattr(collator, "tokenizer", None),
    ):  # fmt: skip
        inner = getattr(found, "tokenizer", found)
        if callable(getattr(inner, "convert_ids_to_tokens", None)):
            return inner
    return None


def _stop_ids(model: Any, tokenizer: Any) -> list[int] | None:
    """Where generation stops, the tokenizer's end included; ``None`` where the model has no
    generation config of its own: the small model's may be made up."""
    settings = getattr(model, "generation_config", None)
    if settings is None or getattr(settings, "_from_model_config", True):
        return None
    value = settings.eos_token_id
    given = value if isinstance(value, (list, tuple)) else [value]
    ids = {one for one in (*given, tokenizer.eos_token_id) if type(one) is int}
    return sorted(ids) or None
