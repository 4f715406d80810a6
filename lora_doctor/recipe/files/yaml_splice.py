"""Edits of YAML text: comments, order, quotes and everything not touched stay byte for byte.

The text is composed into nodes that know where they stand; only the span of the value that
changes is replaced. The caller parses the result again, so a layout that is not understood here
ends in a refusal, never in a wrong file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lora_doctor.recipe.files.flow import Entry, Flow, insert_entry, remove_entry
from lora_doctor.recipe.files.yaml_syntax import compose, dump

#: A list longer than this on one line is written one item per line.
_WIDTH = 100


class CannotSpliceError(Exception):
    """The layout of the text is one that is not edited in place."""


def starts(text: str) -> dict[str, int]:
    """Where each key of the top mapping begins."""
    root = compose(text)
    return {key.value: key.start_mark.index for key, _ in root.value if key.id == "scalar"}


def set_key(text: str, keys: Sequence[str], value: Any) -> str:
    """The text with the value at this path of keys set; a new key goes to the end."""
    mapping = _mapping_at(compose(text), keys[:-1])
    pair = _find(mapping, keys[-1])
    if pair is None:
        return _insert(text, mapping, keys[-1], value)
    key, node = pair
    if _is_alias(key, node):
        return _replace_inline(text, key, _alias_span(text, key), value)
    if _is_block(node) and isinstance(value, dict) and node.id == "mapping" and value:
        return _merge_block_mapping(text, keys, node, value)
    if _is_block(node) and isinstance(value, (list, tuple)) and node.id == "sequence" and value:
        return _replace_block_sequence(text, node, list(value))
    return _replace_inline(text, key, _span(text, key, node), value)


def remove_key(text: str, keys: Sequence[str]) -> str:
    """The text without the key at this path of keys."""
    mapping = _mapping_at(compose(text), keys[:-1])
    pair = _find(mapping, keys[-1])
    if pair is None:
        return text
    key, node = pair
    if mapping.flow_style:
        number = [id(other) for other, _ in mapping.value].index(id(key))
        return remove_entry(text, _flow_of(text, mapping), number)
    start = _line_start(text, key.start_mark.index)
    if text[start : key.start_mark.index].strip():
        raise CannotSpliceError  # "? key", or a key behind "---" on the same line
    end = _next_line(text, _end(text, key, node))
    if len(mapping.value) > 1:
        return text[:start] + text[end:]
    # An empty block mapping would read as null.
    removed = text[start:end]
    line_break = removed[len(removed.rstrip("\r\n")) :]
    return text[: key.start_mark.index] + "{}" + line_break + text[end:]


def _mapping_at(root: Any, keys: Sequence[str]) -> Any:
    node = root
    for name in keys:
        pair = _find(node, name)
        if pair is None or pair[1].id != "mapping":
            raise CannotSpliceError
        node = pair[1]
    return node


def _find(mapping: Any, name: str) -> tuple[Any, Any] | None:
    for key, node in mapping.value:
        if key.id == "scalar" and key.value == name and key.tag == "tag:yaml.org,2002:str":
            return key, node
    return None


def _is_alias(key: Any, node: Any) -> bool:
    """Whether the value is an alias: then its marks are those of the anchor, further up."""
    return bool(node.start_mark.index < key.end_mark.index)


def _alias_span(text: str, key: Any) -> tuple[int, int]:
    match = re.compile(r"\s*:\s*(\*[^\s,\[\]{}]+)").match(text, key.end_mark.index)
    if match is None:
        raise CannotSpliceError
    return match.span(1)


def _is_block(node: Any) -> bool:
    return node.id != "scalar" and not node.flow_style


def _after_colon(text: str, key: Any) -> int:
    match = re.compile(r"\s*:").match(text, key.end_mark.index)
    if match is None:
        raise CannotSpliceError
    return match.end()


def _span(text: str, key: Any, node: Any) -> tuple[int, int]:
    """From the first to behind the last character of a value (an anchor or a tag included)."""
    start = node.start_mark.index
    if node.id == "scalar" and start == node.end_mark.index:
        colon = _after_colon(text, key)  # the mark of a value left out is the next token's
        return colon, colon
    return start, _end(text, key, node)


def _end(text: str, key: Any, node: Any) -> int:
    """Behind the last character that belongs to the value, comments excluded."""
    if _is_alias(key, node):
        return _alias_span(text, key)[1]
    start, end = node.start_mark.index, node.end_mark.index
    if node.id == "scalar":
        if start == end:
            return _after_colon(text, key)
        if node.style in ("|", ">"):
            return int(start + len(text[start:end].rstrip("\r\n")))
        return int(end)
    if node.flow_style:
        return int(end)
    # The end mark of a block collection is where the next token begins: the comments and blank
    # lines between are not its own.
    last_text = _last_leaf(node)
    if last_text is not None and last_text.style in ("|", ">"):
        leaf_start, leaf_end = last_text.start_mark.index, last_text.end_mark.index
        return int(leaf_start + len(text[leaf_start:leaf_end].rstrip("\r\n")))
    lines = text[start:end].splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    last_line_start = start + sum(len(line) for line in lines[:-1])
    if last_text is not None and last_text.end_mark.index > last_line_start:
        return int(last_text.end_mark.index)
    return int(start + len("".join(lines).rstrip()))


def _last_leaf(node: Any) -> Any:
    """The last scalar or bracketed value below, or ``None`` if an alias or a gap stands there."""
    position = node.start_mark.index
    while node.id != "scalar" and not node.flow_style:
        if not node.value:
            return None
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
        if node.start_mark.index < position or node.start_mark.index == node.end_mark.index:
            return None
        position = node.start_mark.index
    return _Leaf(node)


class _Leaf:
    """A scalar, or a bracketed collection taken as one."""

    def __init__(self, node: Any) -> None:
        self.start_mark, self.end_mark = node.start_mark, node.end_mark
        self.style = node.style if node.id == "scalar" else None


def _replace_inline(text: str, key: Any, span: tuple[int, int], value: Any) -> str:
    """The value written behind its key; a comment there stays."""
    start, end = span
    text = _anchor_handed_on(text, start, end)
    written = dump(value)
    colon = _after_colon(text, key)
    if "\n" not in text[colon:start]:
        gap = "" if start > colon else " "
        return text[:start] + gap + written + text[end:]
    # A block value began on a later line: the new one goes up to the key.
    line_end = _line_end(text, colon)
    return text[:colon] + " " + written + text[colon:line_end] + text[_line_end(text, end) :]


def _anchor_handed_on(text: str, start: int, end: int) -> str:
    """An anchored value that is about to change, written out at the first alias of it: the other
    readers keep what they had."""
    match = re.compile(r"&([^\s,\[\]{}]+)\s+\S").match(text, start)
    if match is None or match.end() > end:
        return text
    alias = re.compile(rf"(?<=[\s,\[{{])\*{re.escape(match[1])}(?=[\s,\]}}]|\Z)").search(text, end)
    if alias is None:
        return text
    if "\n" in text[start:end]:
        raise CannotSpliceError
    return text[: alias.start()] + text[start:end] + text[alias.end() :]


def _replace_block_sequence(text: str, node: Any, items: list[Any]) -> str:
    """The list with one item per line; an item that stays keeps its line and its comments."""
    start = node.start_mark.index
    begin = _line_start(text, start)
    lead = text[begin:start]
    if lead.strip() or any(child.start_mark.index < start for child in node.value):
        raise CannotSpliceError
    chunks: list[tuple[Any, str]] = []
    position = begin
    for child in node.value:
        end = _next_line(text, child.end_mark.index)
        plain = child.id == "scalar" and child.style not in ("|", ">")
        if not plain or "\n" in text[child.start_mark.index : child.end_mark.index]:
            raise CannotSpliceError
        chunks.append((_scalar(child), text[position:end]))
        position = end
    if len(items) == len(chunks) and not _reordered([old for old, _ in chunks], items):
        return _replace_items(text, node, items)
    newline = _newline(text)
    if not chunks[-1][1].endswith("\n"):
        chunks[-1] = (chunks[-1][0], chunks[-1][1] + newline)
    written = []
    for item in items:
        kept = next((chunk for chunk in chunks if _same(chunk[0], item)), None)
        if kept is not None:
            chunks.remove(kept)
        written.append(kept[1] if kept else f"{lead}- {dump(item)}{newline}")
    new = "".join(written)
    if position == len(text) and not text.endswith("\n"):
        new = new[: -len(newline)]
    return text[:begin] + new + text[position:]


def _reordered(old: list[Any], new: list[Any]) -> bool:
    """Whether an item of the list stands at another place than before."""
    return any(
        not _same(old[number], item) and any(_same(other, item) for other in old)
        for number, item in enumerate(new)
    )


def _replace_items(text: str, node: Any, items: list[Any]) -> str:
    """The list with each item that differs written in the place of the old one, whose comment
    stays."""
    for child, item in reversed(list(zip(node.value, items, strict=True))):
        if not _same(_scalar(child), item):
            start, end = child.start_mark.index, child.end_mark.index
            text = text[:start] + dump(item) + text[end:]
    return text


def _merge_block_mapping(text: str, keys: Sequence[str], node: Any, value: dict[str, Any]) -> str:
    """Only the entries of the mapping that differ are touched."""
    old = _plain(node)
    for name in value:
        if name not in old or not _same(old[name], value[name]):
            text = set_key(text, [*keys, name], value[name])
    for name in old:
        if name not in value:
            text = remove_key(text, [*keys, name])
    return text


def _insert(text: str, mapping: Any, name: str, value: Any) -> str:
    newline = _newline(text)
    if mapping.flow_style:
        quoted = bool(mapping.value) and all(key.style == '"' for key, _ in mapping.value)
        key_text = f'"{name}"' if quoted else dump(name)
        indent = " " * (mapping.start_mark.column + 2)
        written = f"{key_text}: {dump(value)}"
        return insert_entry(text, _flow_of(text, mapping), written, newline, indent)
    first = mapping.value[0][0]
    lead = text[_line_start(text, first.start_mark.index) : first.start_mark.index]
    if lead.strip():
        raise CannotSpliceError
    line = f"{lead}{dump(name)}: {dump(value)}"
    if isinstance(value, (list, tuple)) and len(line) > _WIDTH:
        items = (f"{newline}{lead}  - {dump(item)}" for item in value)
        line = f"{lead}{dump(name)}:" + "".join(items)
    key, node = mapping.value[-1]
    end = _line_end(text, _end(text, key, node))
    return text[:end] + newline + line + text[end:]


def _flow_of(text: str, mapping: Any) -> Flow:
    """The places of a flow mapping's keys and values."""
    entries = []
    for key, node in mapping.value:
        start, end = (
            _alias_span(text, key) if _is_alias(key, node) else _span_in_flow(text, key, node)
        )
        entries.append(Entry(key.value, key.start_mark.index, start, end))
    # Behind an anchor or a tag, the mark of the mapping is where those begin.
    start = text.index("{", mapping.start_mark.index)
    return Flow(start, mapping.end_mark.index - 1, tuple(entries))


def _span_in_flow(text: str, key: Any, node: Any) -> tuple[int, int]:
    if node.id == "scalar" and node.start_mark.index == node.end_mark.index:
        match = re.compile(r"\s*:").match(text, key.end_mark.index)
        end = match.end() if match else key.end_mark.index  # "{a, b}" has no colons
        return end, end
    return node.start_mark.index, node.end_mark.index


def _plain(node: Any) -> dict[str, Any]:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    return dict(yaml.constructor.construct_document(node))


def _scalar(node: Any) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).constructor.construct_document(node)


def _same(left: Any, right: Any) -> bool:
    """Equal and of the same type (True is not 1)."""
    return type(left) is type(right) and bool(left == right)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _line_start(text: str, position: int) -> int:
    return text.rfind("\n", 0, position) + 1


def _line_end(text: str, position: int) -> int:
    """Where the line of ``position`` ends, before its line break."""
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    return end - 1 if end > position and text[end - 1] == "\r" else end


def _next_line(text: str, position: int) -> int:
    """Behind the line break of the line of ``position``."""
    end = text.find("\n", position)
    return len(text) if end < 0 else end + 1
