"""YAML: safe parsing that says where, and values written so that any YAML reader agrees."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError, LimitError
from lora_doctor.limits import (
    YAML_CHARACTERS,
    YAML_ITEMS,
    YAML_RECIPE,
    bounded,
    check_items,
    count_items,
    step,
)

#: How many values a recipe may have once its aliases are written out: a few lines of aliases of
#: aliases ("billion laughs") stand for more than any memory holds.
YAML_EXPANDED_ITEMS = 200_000
_ADVICE = "check that it is the right file, or write it as JSON"

#: Plain where YAML 1.1 (PyYAML) and 1.2 (ruamel) read the same text; all else is quoted.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"})


def parse(text: str, path: Path) -> dict[Any, Any]:
    """The mapping in the text. No tag is executed, no alias bomb expanded.

    Raises:
        InputError: not YAML (with the line), a key twice, not a mapping, or an alias bomb.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.nodes import MappingNode

    try:
        root, construct = _composed(text)
        if root is None:
            raise InputError(f"{path}: is empty; write at least one key, such as r: 16")
        if not isinstance(root, MappingNode):
            raise InputError(f"{path}: is not a mapping; write one 'key: value' per line")
        _refuse_bomb(root, path)
        return dict(construct())
    except LimitError as error:
        raise InputError(f"{path}: {error}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: is not usable YAML: {error.problem}") from None
    except YAMLError as error:
        raise InputError(f"{path}: is not usable YAML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply to be a recipe") from None
    # ruamel lets the errors of int(), float() and its own look-ups through for odd scalars
    # (an integer of more than 4300 digits, "!!int x", "!!bool x").
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{path}: has a value that YAML cannot read: {error!r}") from None


def compose(text: str) -> Any:
    """The root node of the text, with the marks of every node, or ``None`` if there is none.

    Raises:
        LimitError: it has more than is read, or takes too long.
    """
    return _composed(text)[0]


def _composed(text: str) -> tuple[Any, Callable[[], Any]]:
    """The root node, and what makes its value: the text is scanned once, that takes the time."""
    from ruamel.yaml import YAML

    check_items(len(text), YAML_CHARACTERS, "it", "characters", _ADVICE)
    # Each value but the first stands behind one of these.
    check_items(count_items(text) + text.count("\n"), YAML_ITEMS, "it", "values", _ADVICE)
    yaml = YAML(typ="safe", pure=True)
    with bounded(YAML_RECIPE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ruamel prints one for each anchor that is used again
        root = yaml.compose(_Counted(text))
    return root, lambda: yaml.constructor.construct_document(root)


class _Counted:
    """The text as a stream: the scanner fetches it in pieces, and each is counted."""

    def __init__(self, text: str) -> None:
        self.stream = io.StringIO(text)

    def read(self, size: int = -1) -> str:
        piece = self.stream.read(size)
        step(len(piece))
        return piece


def _refuse_bomb(root: Any, path: Path) -> None:
    """Count the nodes as if aliases were written out; a node's count is computed once."""
    counts: dict[int, int] = {}
    open_nodes: set[int] = set()

    def count(node: Any) -> int:
        key = id(node)
        if key in open_nodes:
            raise InputError(f"{path}: has an alias that contains itself; write the value out")
        if key not in counts:
            open_nodes.add(key)
            total = 1
            for child in children(node):
                total += count(child)
            open_nodes.discard(key)
            counts[key] = total
        if counts[key] > YAML_EXPANDED_ITEMS:
            raise InputError(f"{path}: its aliases expand to too many values; write them out")
        return counts[key]

    count(root)


def children(node: Any) -> list[Any]:
    """The nodes right below: keys and values of a mapping, items of a sequence."""
    if not isinstance(node.value, list):
        return []
    return [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]


def dump(value: Any) -> str:
    """A value on one line: scalars, ``[a, b]``, ``{k: v}``.

    Raises:
        InputError: the value is nothing that a recipe file can hold.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _dump_float(value)
    if isinstance(value, str):
        return _dump_text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(dump(item) for item in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{_dump_text(str(key))}: {dump(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    raise InputError(f"a {type(value).__name__} cannot be written into a recipe file")


def _dump_float(value: float) -> str:
    if value != value:
        return ".nan"
    if value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    # YAML 1.1 takes 1e-05 for a text: it wants a dot, and a sign in the exponent.
    return text if "." in text else text.replace("e", ".0e")


def _dump_text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(_escape(character) for character in text) + '"'


def _escape(character: str) -> str:
    if character in '\\"':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
