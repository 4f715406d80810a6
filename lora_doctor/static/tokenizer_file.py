"""What a `tokenizer.json` is made of, without parsing its vocabulary.

Vocabulary and merges are nearly all of the file (10 to 30 MB) and stand at its end. What decides
whether the installed `tokenizers` can read it stands before them, and in the form of the merges.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import (
    TOKENIZER_BYTES,
    TOKENIZER_HEAD_ITEMS,
    TOKENIZER_ITEMS,
    check_items,
    count_items,
)
from lora_doctor.static.piece import check_depth, parse_json, read_bytes

# Below this, parsing everything takes less than 10 ms and proves that the file is whole.
_SMALL = 256 * 1024
_SPACE = re.compile(r"[ \t\n\r]*")
_MERGES = re.compile(r'(?<!\\)"merges"\s*:\s*\[\s*(["\[\]])')
_MERGE_FORMS = {'"': "strings", "[": "pairs", "]": "empty"}


@dataclass(frozen=True)
class TokenizerFile:
    """The parts of a `tokenizer.json`.

    `sections` holds every top-level entry but `model` (`pre_tokenizer`, `normalizer`,
    `added_tokens` …) as parsed; `model_type` is `BPE`, `Unigram` …, None when the file does not
    say; `merges` is `strings` ("a b"), `pairs` (["a", "b"], which tokenizers before 0.20 cannot
    read), `empty`, or None when there are none.
    """

    sections: dict[str, Any]
    model_type: str | None
    merges: str | None


def read_tokenizer_file(path: Path) -> TokenizerFile:
    """Parse `path`; EvidenceError when it is missing, cut off or not a tokenizer."""
    content = read_bytes(path, TOKENIZER_BYTES)
    if len(content) > _SMALL:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise EvidenceError(
                f"{path.name} is not UTF-8 (byte {error.start})", remedy="file"
            ) from None
        quick = _read_head(text, path.name)
        if quick is not None:
            return quick
    return _read_whole(parse_json(content, path.name, items=TOKENIZER_ITEMS), path.name)


def _read_whole(parsed: Any, name: str) -> TokenizerFile:
    if not isinstance(parsed, dict):
        raise EvidenceError(f"{name} is JSON but not an object", remedy="file")
    model = parsed.pop("model", None)
    model = model if isinstance(model, dict) else {}
    kind, merges = model.get("type"), model.get("merges")
    form = None
    if isinstance(merges, list):
        first = merges[0] if merges else None
        form = "empty" if not merges else "pairs" if isinstance(first, list) else "strings"
    return TokenizerFile(parsed, kind if isinstance(kind, str) else None, form)


def _read_head(text: str, name: str) -> TokenizerFile | None:
    """The parts before the vocabulary; None when the file is not laid out as tokenizers does it."""
    if not text.rstrip().endswith("}"):
        raise EvidenceError(
            f"{name} is cut off: it does not end in }}; download it again", remedy="file"
        )
    vocabulary = text.find('"vocab"')
    head = text if vocabulary < 0 else text[:vocabulary]
    check_items(count_items(head), TOKENIZER_HEAD_ITEMS, f"{name}, before its vocabulary,")
    try:
        sections, place = _values_until(text, 0, {"model"})
        # The library writes all sections, null when unused, and the model last.
        if place is None or "pre_tokenizer" not in sections or "added_tokens" not in sections:
            return None
        model, inner = _values_until(text, place, {"vocab", "merges"})
    except (ValueError, IndexError, RecursionError):
        return None  # parsed as a whole, which says where it is wrong
    check_depth([sections, model], name)
    found = _MERGES.search(text, inner) if inner is not None else None
    kind = model.get("type")
    return TokenizerFile(
        sections,
        kind if isinstance(kind, str) else None,
        _MERGE_FORMS[found.group(1)] if found else None,
    )


def _values_until(text: str, place: int, stop: set[str]) -> tuple[dict[str, Any], int | None]:
    """Entries of the object at `place`, up to the first key in `stop`, and where its value starts.

    ValueError or IndexError when there is no well-formed object.
    """
    decoder = json.JSONDecoder()

    def skip(position: int, character: str) -> int:
        position = _end_of_space(text, position)
        if text[position] != character:
            raise ValueError(f"expected {character}")
        return _end_of_space(text, position + 1)

    values: dict[str, Any] = {}
    place = skip(place, "{")
    while text[place] != "}":
        key, place = decoder.raw_decode(text, place)
        place = skip(place, ":")
        if key in stop:
            return values, place
        values[key], place = decoder.raw_decode(text, place)
        place = _end_of_space(text, place)
        if text[place] == ",":
            place = skip(place, ",")
    return values, None


def _end_of_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place
