"""Tokens that a program adds to its tokenizer, and whether it resizes the embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_doctor.recipe.program.objects import same_source, top
from lora_doctor.recipe.program.order import one_line
from lora_doctor.recipe.program.setup import Setup
from lora_doctor.static.place import Place
from lora_doctor.static.program.values import Items, Known, Mapping, Thing, Value

_ADDS = ("add_tokens", "add_special_tokens")
_RESIZES = "resize_token_embeddings"
#: What changes the embeddings in another way, or may do so: the functions of TRL resize them.
_OTHERWISE = ("unsloth", "set_input_embeddings", "setup_chat_format", "clone_chat_template")


@dataclass(frozen=True)
class AddedTokens:
    """One call that adds tokens whose texts are known."""

    #: Their texts.
    tokens: tuple[str, ...]
    #: Those that are only for padding: nobody wants them learned.
    for_padding: tuple[str, ...]
    #: Where the call is.
    place: Place
    #: Its text, on one line.
    code: str
    #: Where the embeddings are resized; ``None`` where the program does not do that.
    resized: Place | None
    #: Whether the tokenizer is loaded from where the model is.
    of_the_model: bool

    @property
    def padding(self) -> bool:
        """Whether all are only for padding."""
        return set(self.tokens) <= set(self.for_padding)


def added_tokens(setup: Setup) -> Iterator[AddedTokens]:
    """The calls, in their order; none where the embeddings may be changed in another way."""
    units = setup.program.units
    resizing = [call for call in setup.program.calls if call.method == _RESIZES]
    if not resizing and any(
        name in unit.text for unit in units for name in (_RESIZES, *_OTHERWISE)
    ):
        return
    for call in setup.program.calls:
        owner = call.receiver.call if isinstance(call.receiver, Thing) else None
        if call.method not in _ADDS or not call.certain or owner is None:
            continue
        if top(owner.name) != "transformers" or "Tokenizer" not in owner.name:
            continue
        given = call.argument("new_tokens", 0) or call.argument("special_tokens_dict", 0)
        found = _tokens(given.value) if given is not None else None
        if found:
            yield AddedTokens(
                tuple(text for _, text in found),
                tuple(text for role, text in found if role == "pad_token"),
                call.place,
                one_line(call),
                resizing[0].place if resizing else None,
                same_source(owner, setup.roles.loader),
            )


def _tokens(value: Value) -> list[tuple[str, str]] | None:
    """Role and text of each; ``None`` where one of them is not known."""
    if isinstance(value, Mapping):
        if value.open is not None:
            return None
        parts = [(role, _tokens(item)) for role, item in value.entries.items()]
        if any(found is None for _, found in parts):
            return None
        return [(role, text) for role, found in parts for _, text in found or ()]
    if isinstance(value, Items):
        inner = [_tokens(item) for item in value.items]
        if value.open is not None or any(found is None for found in inner):
            return None
        return [one for found in inner for one in found or ()]
    if isinstance(value, Known) and isinstance(value.value, str):
        return [("", value.value)]
    if isinstance(value, Thing) and value.call.method == "AddedToken":
        content = value.call.value("content", 0)
        return _tokens(content) if content is not None else None
    return None
