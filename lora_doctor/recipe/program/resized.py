"""How many rows of embeddings a program gives its model beside the checkpoint's, and when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_doctor.errors import EvidenceError
from lora_doctor.recipe.program.added_tokens import added_tokens
from lora_doctor.recipe.program.objects import is_none, loader_of, text_of, top
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.named_file import named_folder
from lora_doctor.static.place import CELL, Place
from lora_doctor.static.program.values import Call, Known, Thing, Value
from lora_doctor.static.tokenizer_reading import number_of_tokens

_RESIZES = "resize_token_embeddings"
_ADDS = ("add_tokens", "add_special_tokens")


@dataclass(frozen=True)
class Resized:
    """The embeddings are resized before the saved adapter is loaded."""

    place: Place
    #: To how many rows; ``None`` where the text does not tell.
    rows: int | None


def resized_before_adapter(setup: Setup) -> Resized | None:
    """The last call that resizes the model's embeddings before its saved adapter is loaded;
    ``None`` where none does: what happens afterwards changes nothing about the loading."""
    wrap, found = setup.roles.wrapper, None
    for call in setup.program.calls:
        if call.method != _RESIZES or (wrap is not None and call.number > wrap.number):
            continue
        known = call.certain and loader_of(call.receiver) is setup.roles.loader
        found = Resized(call.place, _rows(setup, call) if known else None)
    return found


def _rows(setup: Setup, call: Call) -> int | None:
    value = call.value("new_num_tokens", 0)
    rows = None
    if isinstance(value, Known) and isinstance(value.value, int):
        rows = value.value
    elif isinstance(value, Thing) and value.call.name == "builtins.len" and value.call.positional:
        rows = _tokens(setup, call, value.call.positional[0].value)
    multiple = call.value("pad_to_multiple_of", 1)
    if rows is None or is_none(multiple):
        return rows
    if not isinstance(multiple, Known) or not isinstance(multiple.value, int):
        return None
    return -(-rows // multiple.value) * multiple.value


def _tokens(setup: Setup, before: Call, tokenizer: Value) -> int | None:
    """The tokens of this tokenizer, with those that the program adds; ``None`` where its folder is
    not here, or something is added that is not known."""
    loading = tokenizer.call if isinstance(tokenizer, Thing) else None
    if loading is None or not loading.certain or not _loads_tokenizer(loading):
        return None
    name = text_of(loading.value("pretrained_model_name_or_path", 0))
    beside = Path(before.place.file.partition(CELL)[0]).parent
    folder = named_folder(name, (Path(), beside)) if name is not None else None
    adding = [one for one in setup.program.calls
              if one.method in _ADDS and one.number < before.number]  # fmt: skip
    known = {one.place: one.tokens for one in added_tokens(setup)}
    if folder is None or any(one.place not in known for one in adding):
        return None
    try:
        return number_of_tokens(folder, [text for one in adding for text in known[one.place]])
    except EvidenceError:
        return None


def _loads_tokenizer(call: Call) -> bool:
    return (
        call.method == "from_pretrained"
        and top(call.name) == "transformers"
        and "Tokenizer" in call.name
    )
