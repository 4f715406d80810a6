"""The tokenizer of a model's files, as training has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from lora_doctor.errors import EvidenceError, InputError
from lora_doctor.recipe.recipe import Recipe
from lora_doctor.results.supervision import TokenizerFacts
from lora_doctor.text import single_line


def load_tokenizer(source: Mapping[str, Any], **more: Any) -> Any:
    """The tokenizer of a model's files; ``more``: arguments of ``from_pretrained``.

    Raises:
        EvidenceError: there is none, or transformers refuses it.
    """
    folder = source.get("folder")
    if folder is None:
        raise EvidenceError(
            f"{source['kind']}:{source['name']} has no tokenizer; --data needs a folder or hub id"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder,
            trust_remote_code=bool(source["trust_remote_code"]),
            local_files_only=True,
            **more,
        )
    except Exception as error:
        raise EvidenceError(
            f"the tokenizer of {source['name']} cannot be loaded: {type(error).__name__}: "
            f"{single_line(str(error), 300)}",
            remedy="package" if isinstance(error, ImportError) else "file",
        ) from error


def apply_keys(tokenizer: Any, recipe: Recipe) -> None:
    """What TRL changes of the tokenizer by its own arguments."""
    known = tokenizer.get_vocab()
    for key in ("eos_token", "pad_token"):
        token = recipe.get(key)
        if token is None:
            continue
        if token not in known:
            raise InputError(f"{key} {token!r}: is not in the vocabulary of the model's tokenizer")
        setattr(tokenizer, key, token)
    path = recipe.get("chat_template_path")
    if path is None:
        return
    file = Path(path)
    if not file.is_file() or file.stat().st_size > 1 << 20:
        raise InputError(f"chat_template_path {path!r}: no such file")
    tokenizer.chat_template = file.read_text(encoding="utf-8")


def training_template(tokenizer: Any, facts: TokenizerFacts, recipe: Recipe) -> str | None:
    """The template that the installed TRL trains with in the place of one without marks; asked of
    TRL itself. ``None`` where it has none, or is not installed."""
    if not recipe.get("assistant_only_loss") or facts.has_generation_marks:
        return None
    try:
        from trl.chat_template_utils import get_training_chat_template
    except Exception:  # noqa: BLE001 - no TRL, one without it, or one that cannot be imported
        return None
    try:
        found = get_training_chat_template(tokenizer)
    except Exception:  # noqa: BLE001 - it raises for a template that it does not know
        return None
    return found if isinstance(found, str) else None


def stop_ids(
    source: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Any
) -> list[int] | None:
    """Where generation stops: by the model's files, and at the tokenizer's own end-of-text token,
    which the Trainer adds to them; ``None`` where none of them says."""
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for settings in (model_json(source, "generation_config.json"), config):
        value = settings.get("eos_token_id")
        ids = [one for one in (value if isinstance(value, list) else [value]) if is_id(one)]
        if ids:
            return sorted({*ids, *own})
    return own or None


def is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def model_json(source: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A JSON object of the model's folder; empty where there is none."""
    from lora_doctor.static.piece import read_json_object

    try:
        return read_json_object(Path(source["folder"]) / name)
    except EvidenceError:
        return {}
