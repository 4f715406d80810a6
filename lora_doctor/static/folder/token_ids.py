"""Which ids a folder's tokenizer gives out, from its files; nothing of it is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import TOKENIZER_BYTES
from lora_doctor.static.model_files import StaticEvidence
from lora_doctor.static.piece import read_bytes, read_json_object

_TOKENIZER = "tokenizer.json"
_MODEL = re.compile(r'"model"\s*:\s*\{')
_VOCABULARY = re.compile(r'"vocab"\s*:\s*(?=[\[{])')
#: Entries of tokenizer_config.json that name a token which every row of the data may hold.
_ROLES = (
    "pad_token",
    "bos_token",
    "eos_token",
    "unk_token",
    "cls_token",
    "sep_token",
    "mask_token",
)
#: Placeholders that a processor writes and the model replaces; text models are published with the
#: tokenizer of their multimodal sibling, and never see them.
_PLACEHOLDER = re.compile(r"image|img|audio|video|vision|speech|soft_token", re.IGNORECASE)


@dataclass(frozen=True)
class TokenId:
    """A token, its id and the file that says so; ``role`` is `pad_token` or the like."""

    token: str
    id: int
    file: str
    #: ``added`` after the vocabulary, else part of it.
    added: bool
    role: str | None = None


def tokens_beyond(static: StaticEvidence, rows: int) -> tuple[TokenId, ...]:
    """Tokens of the folder whose ids are ``rows`` or more: the highest of the vocabulary, and every
    added token, the lowest id first. Placeholders of images and the like are left out.

    Raises:
        EvidenceError: the folder has no tokenizer, or it cannot be read.
    """
    found: dict[int, TokenId] = {}
    for token in _tokens(static):
        if token.id >= rows and not _PLACEHOLDER.search(token.token):
            found.setdefault(token.id, token)
    roles = _roles(static)
    return tuple(
        TokenId(token.token, token.id, token.file, token.added, roles.get(token.token))
        for _, token in sorted(found.items())
    )


def ids_of_new(static: StaticEvidence, tokens: Sequence[str]) -> dict[str, int]:
    """The ids that these tokens get when they are added to the folder's tokenizer, behind all it
    has; those that it has already are left out.

    Raises:
        EvidenceError: the folder has no tokenizer, or it cannot be read.
    """
    known = list(_tokens(static))
    folder = static.folder
    files = (_TOKENIZER, "vocab.json", "vocab.txt")
    text = next(_text(folder / name) for name in files if (folder / name).is_file())
    have = {token.token for token in known} | set(text.splitlines())
    written = {
        token: {json.dumps(token), json.dumps(token, ensure_ascii=False)} for token in tokens
    }
    new = [
        token
        for token in dict.fromkeys(tokens)
        if token not in have and not any(form in text for form in written[token])
    ]
    following = max((token.id for token in known), default=-1) + 1
    return {token: number for number, token in enumerate(new, following)}


def _tokens(static: StaticEvidence) -> Iterator[TokenId]:
    folder = static.folder
    if (folder / _TOKENIZER).is_file():
        text = _text(folder / _TOKENIZER)
        added = static.tokenizer.require().sections.get("added_tokens")
        yield from _highest(_vocabulary(text), _TOKENIZER)
        for entry in added if isinstance(added, list) else ():
            if isinstance(entry, dict):
                yield from _one(entry.get("content"), entry.get("id"), _TOKENIZER)
    elif (folder / "vocab.json").is_file():
        yield from _highest(read_json_object(folder / "vocab.json"), "vocab.json")
    elif (folder / "vocab.txt").is_file():
        lines = _text(folder / "vocab.txt").splitlines()
        yield from _highest(lines, "vocab.txt")
    else:
        raise EvidenceError(f"{static.source} has no tokenizer.json, vocab.json or vocab.txt")
    if (folder / "added_tokens.json").is_file():
        for token, number in read_json_object(folder / "added_tokens.json").items():
            yield from _one(token, number, "added_tokens.json")
    decoder = (static.tokenizer_config.value or {}).get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and re.fullmatch(r"\d{1,12}", str(number)):
            yield from _one(entry.get("content"), int(number), "tokenizer_config.json")


def _highest(vocabulary: Any, file: str) -> Iterator[TokenId]:
    """The token with the highest id, of `{token: id}`, `[[token, score]]` or `[token]`."""
    if isinstance(vocabulary, Mapping):
        numbers = {token: number for token, number in vocabulary.items() if type(number) is int}
        if numbers:
            token = max(numbers, key=numbers.__getitem__)
            yield TokenId(str(token), numbers[token], file, added=False)
    elif isinstance(vocabulary, list) and vocabulary:
        last = vocabulary[-1]
        token = last[0] if isinstance(last, list) and last else last
        yield TokenId(str(token), len(vocabulary) - 1, file, added=False)


def _one(token: object, number: object, file: str) -> Iterator[TokenId]:
    if isinstance(token, str) and type(number) is int:
        yield TokenId(token, number, file, added=True)


def _vocabulary(text: str) -> Any:
    """The vocabulary of a tokenizer.json. Its merges, half of the file, are not parsed."""
    model = _MODEL.search(text)
    start = _VOCABULARY.search(text, model.end()) if model else None
    if start is None:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start.end())[0]
    except (ValueError, RecursionError) as error:
        raise EvidenceError(
            f"the vocabulary of {_TOKENIZER} cannot be read: {error}", remedy="file"
        ) from None


def _roles(static: StaticEvidence) -> dict[str, str]:
    """Each token that the settings give a role (`pad_token`), to this role."""
    roles: dict[str, str] = {}
    for settings in (static.tokenizer_config, static.json_file("special_tokens_map.json")):
        for role in _ROLES:
            named = (settings.value or {}).get(role)
            content = named.get("content") if isinstance(named, dict) else named
            if isinstance(content, str):
                roles.setdefault(content, role)
    return roles


def _text(path: Path) -> str:
    content = read_bytes(path, TOKENIZER_BYTES)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EvidenceError(
            f"{path.name} is not UTF-8 (byte {error.start})", remedy="file"
        ) from None
