"""The values that plain code of a program works on, and what may be asked of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: The longest text or list that code may make.
LONGEST = 2_000_000
_OF_TEXTS = frozenset(
    {"lower", "upper", "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "replace",
     "join", "startswith", "endswith", "find", "rfind", "index", "count", "title", "capitalize",
     "removeprefix", "removesuffix", "partition", "rpartition", "isdigit", "isalpha", "isspace",
     "casefold", "swapcase"}
)  # fmt: skip
_OF_LISTS = frozenset(
    {"append", "extend", "copy", "index", "count", "insert", "pop", "reverse", "remove", "clear"}
)
_OF_DICTIONARIES = frozenset(
    {"keys", "values", "items", "get", "copy", "pop", "update", "setdefault"}
)
_OF_SETS = frozenset({"add", "update", "discard", "copy", "union", "intersection", "difference"})
_OF_TOKENIZERS = frozenset(
    {"encode", "decode", "batch_decode", "apply_chat_template", "convert_tokens_to_ids",
     "convert_ids_to_tokens", "tokenize", "num_special_tokens_to_add", "pad"}
)  # fmt: skip
_OF_ENCODINGS = _OF_DICTIONARIES | {"word_ids", "sequence_ids", "char_to_token", "tokens"}
_OF_TENSORS = frozenset({"tolist", "clone", "squeeze", "flatten", "item", "size", "unsqueeze"})


VIEWS = ("dict_keys", "dict_values", "dict_items", "KeysView", "ValuesView", "ItemsView",
          "list_iterator", "list_reverseiterator", "generator", "chain")  # fmt: skip


class NotFollowedError(Exception):
    """Code that is outside of what is worked out here."""


class Made:
    """What the program or a library holds that code may reach into by an attribute."""

    def attribute(self, name: str) -> Any:
        """An attribute that code may read.

        Raises:
            NotFollowedError: it is none of these.
        """
        raise NotFollowedError(name)

    def set(self, name: str, value: Any) -> None:
        """Set an attribute; raises as :meth:`attribute`."""
        raise NotFollowedError(name)


class OpenedText(Made):
    """A text file that was opened to be read."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines(keepends=True)

    def read(self) -> str:
        return "".join(self.lines)

    def attribute(self, name: str) -> Any:
        if name in ("read", "readlines"):
            return Allowed(self.read if name == "read" else lambda: list(self.lines))
        raise NotFollowedError(name)


class Allowed:
    """A function of a library that only computes, by its dotted name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.function(*given, **named)


def short(found: Any) -> Any:
    if isinstance(found, (str, list, tuple)) and len(found) > LONGEST:
        raise NotFollowedError("too long")
    return found


def is_plain(value: Any) -> bool:
    """Whether operators and ``str`` of it do what they do in the program."""
    return value is None or isinstance(
        value, (str, int, float, bool, list, tuple, set, range)
    ) or is_dictionary(value)  # fmt: skip


def is_dictionary(value: Any) -> bool:
    return isinstance(value, dict) or is_encoding(value) or (
        type(value).__name__ in ("LazyRow", "LazyBatch")
    )  # fmt: skip


def is_encoding(value: Any) -> bool:
    return type(value).__name__ == "BatchEncoding"


def is_tensor(value: Any) -> bool:
    return type(value).__name__ == "Tensor"


def is_tokenizer(value: Any) -> bool:
    return any(base.__name__ == "PreTrainedTokenizerBase" for base in type(value).__mro__)


def methods_of(value: Any) -> frozenset[str]:
    """The methods of a value that code may call."""
    if isinstance(value, str):
        return _OF_TEXTS
    if isinstance(value, list):
        return _OF_LISTS
    if isinstance(value, set):
        return _OF_SETS
    if is_encoding(value):
        return _OF_ENCODINGS
    if is_dictionary(value):
        return _OF_DICTIONARIES
    if is_tensor(value):
        return _OF_TENSORS
    return _OF_TOKENIZERS if is_tokenizer(value) else frozenset()
