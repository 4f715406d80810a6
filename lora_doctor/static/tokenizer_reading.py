"""Whether the installed `tokenizers` can read a `tokenizer.json`: by asking it.

It is imported without torch and takes 40 ms. The parts of the file are tried one at a time in an
otherwise empty tokenizer, so that the part at fault is known and 30 MB of vocabulary are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora_doctor.errors import EvidenceError
from lora_doctor.limits import (
    TOKENIZER_BYTES,
    TOKENIZER_ITEMS,
    TOKENIZER_PARTS,
    TOKENIZER_SECTION_BYTES,
    check_bytes,
    check_items,
    count_items,
)
from lora_doctor.static.piece import read_bytes, read_json_object, shown
from lora_doctor.static.tokenizer_file import TokenizerFile

#: Sections in the order in which the library reads them; each may hold a sequence of parts.
_SECTIONS = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
_SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")
#: The smallest model of each type that every release reads.
_MODELS: Mapping[str, Mapping[str, Any]] = {
    "BPE": {"vocab": {}, "merges": []},
    "Unigram": {"vocab": [["a", 0.0]], "unk_id": 0},
    "WordPiece": {
        "vocab": {}, "unk_token": "a", "continuing_subword_prefix": "#",
        "max_input_chars_per_word": 9,
    },
    "WordLevel": {"vocab": {}, "unk_token": "a"},
}  # fmt: skip
_PAIRS = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


@dataclass(frozen=True)
class Unreadable:
    """A part of the file that the installed library refuses.

    `part` is its path (`pre_tokenizer.pretokenizers[1]`), `content` what stands there, cut short;
    `since` the release of tokenizers that reads it, `until` the one from which on it is refused;
    `None` where it is not known to us.
    """

    part: str
    content: str
    error: str
    since: str | None
    until: str | None = None


def unreadable_parts(file: TokenizerFile) -> tuple[Unreadable, ...]:
    """The parts of `file` that the installed library refuses, each tried by itself.

    Raises:
        EvidenceError: tokenizers is not installed, or refuses an empty tokenizer.
        LimitError: a section is larger than what is handed to the library.
    """
    problem = _refusal({})
    if problem:
        raise EvidenceError(
            f"the installed tokenizers reads no empty tokenizer: {problem}", remedy="package"
        )
    found = []
    version = file.sections.get("version")
    if version is not None and (error := _refusal({"version": version})):
        found.append(Unreadable("version", shown(version), error, None))
    for section in _SECTIONS:
        value = file.sections.get(section)
        if value is not None and (error := _refusal({section: value})):
            path, part = _innermost(section, section, value)
            known = _since(section, part), _until(part)
            found.append(Unreadable(path, shown(part), error, *known))
    found.extend(_model(file))
    return tuple(found)


def whole_file_error(path: Path) -> str | None:
    """What the installed library says when it opens the whole file; `None` when it can.

    Raises:
        EvidenceError: tokenizers is not installed, or the file cannot be read within the limits.
    """
    tokenizer = _library()
    check_items(count_items(read_bytes(path, TOKENIZER_BYTES)), TOKENIZER_ITEMS, path.name)
    return _call(lambda: tokenizer.from_file(str(path)))


def number_of_tokens(folder: Path, added: Sequence[str] = ()) -> int:
    """How many tokens the tokenizer of a folder has, with those that are ``added`` to it: its
    ``tokenizer.json`` as the installed library reads it, and what ``tokenizer_config.json`` adds.

    Raises:
        EvidenceError: there is no such file, or it cannot be read.
    """
    path = folder / "tokenizer.json"
    error = whole_file_error(path)
    if error is not None:
        raise EvidenceError(f"{path.name} cannot be read: {error}", remedy="file")
    vocabulary = set(_library().from_file(str(path)).get_vocab(with_added_tokens=True))
    config = folder / "tokenizer_config.json"
    more = read_json_object(config).get("added_tokens_decoder") if config.is_file() else None
    entries = more.values() if isinstance(more, dict) else ()
    vocabulary |= {str(one.get("content")) for one in entries if isinstance(one, dict)}
    return len(vocabulary | set(added))


def _model(file: TokenizerFile) -> Iterator[Unreadable]:
    kind = file.model_type or ("BPE" if file.merges else None)
    if kind is None:
        return  # written before models said their type; they are read by their form
    if kind not in _MODELS:
        import tokenizers.models

        if not hasattr(tokenizers.models, kind):
            error = _refusal({"model": {"type": kind, "vocab": {}}})
            if error:
                yield Unreadable("model.type", shown(kind), error, None)
        return
    form = _PAIRS if file.merges == "pairs" else _MODELS[kind]
    error = _refusal({"model": {"type": kind, **form}})
    if error:
        pairs = file.merges == "pairs"
        yield Unreadable(
            "model.merges" if pairs else "model.type",
            "pairs, as in ['a', 'b']" if pairs else shown(kind),
            error,
            "0.20.0" if pairs else None,
        )


def _innermost(section: str, path: str, value: Any) -> tuple[str, Any]:
    """The single part of a sequence that is refused by itself; the whole where none is."""
    name = next((key for key in _SEQUENCES if isinstance(value, dict) and key in value), None)
    parts = value[name] if name else None
    if isinstance(parts, list):
        check_items(len(parts), TOKENIZER_PARTS, f"{path} of tokenizer.json", "parts")
    for index, part in enumerate(parts if isinstance(parts, list) else ()):
        if _refusal({section: part}):
            return _innermost(section, f"{path}.{name}[{index}]", part)
    return path, value


def _since(section: str, part: Any) -> str | None:
    """The release that brought this form. No library tells what a later one can: these are the
    forms that have been added, each found by opening one with the releases 0.13 to 0.23."""
    if not isinstance(part, dict):
        return None
    kind = part.get("type")
    if kind == "Metaspace" and "add_prefix_space" not in part:
        return "0.19.0"
    if kind == "ByteLevel" and section == "normalizer":
        return "0.20.0"
    return "0.22.0" if kind == "FixedLength" else None


def _until(part: Any) -> str | None:
    """The release from which on this form is refused, found in the same way."""
    if not isinstance(part, dict) or part.get("type") != "Metaspace":
        return None
    contradiction = part.get("add_prefix_space") is False and part.get("prepend_scheme") != "never"
    return "0.19.0" if contradiction else None


def _refusal(parts: Mapping[str, Any]) -> str | None:
    tokenizer = _library()
    empty: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", **_MODELS["BPE"]},
    }  # fmt: skip
    text = json.dumps({**empty, **parts})
    what = " and ".join(parts) or "tokenizer"
    check_bytes(len(text), TOKENIZER_SECTION_BYTES, f"{what} in tokenizer.json")
    return _call(lambda: tokenizer.from_str(text))


def _library() -> Any:
    if find_spec("tokenizers") is None:
        raise EvidenceError(
            "tokenizers is not installed; pip install 'lora-doctor[stack]'", remedy="package"
        )
    from tokenizers import Tokenizer

    return Tokenizer


def _call(read: Any) -> str | None:
    try:
        read()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None
