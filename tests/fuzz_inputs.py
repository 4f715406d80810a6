"""Hostile bytes and JSON out of good ones: bent, changed, repeated; `fuzz_targets` uses them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzzing import Files

ODD_TEXTS = st.sampled_from([
    "", " ", "\0", "\x1b[2J", "\u202e", "\ud800", "é", "../x", "/etc/passwd", "a/../b", "C:\\x",
    "~",
    "{{7*7}}", "$(id)", "__import__('os')", "!!python/object/apply:os.system [id]", "a" * 5_000,
    "1e999", "NaN", "null", "-0", "0x10", "1_000", "2026-11-27", "<script>", "'; --",
])  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([-1, 0, 1 << 31, 1 << 63, 10**400]),
    st.floats(), ODD_TEXTS, st.text(max_size=20),
)  # fmt: skip
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(ODD_TEXTS | st.text(max_size=8),
        inner, max_size=5)
    ),
    max_leaves=12,
)  # fmt: skip
#: How often something is repeated: now and then as often as a limit is about.
MANY = st.one_of(st.integers(0, 20), st.sampled_from([300, 2_000, 20_000, 120_000]))


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def bent(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Good content; cut, swapped, doubled, with odd bytes, or with a part repeated very often."""
    content = draw(good)
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 60)))
        part = content[start:stop]
        kind = draw(st.sampled_from(["cut", "drop", "repeat", "odd", "move", "case"]))
        if kind == "cut":
            content = content[:start]
        elif kind == "drop":
            content = content[:start] + content[stop:]
        elif kind == "repeat":
            times = min(draw(MANY), 2_000_000 // max(len(part), 1))
            content = content[:start] + part * times + content[stop:]
        elif kind == "odd":
            content = (
                content[:start]
                + draw(st.binary(max_size=6) | ODD_TEXTS.map(to_bytes))
                + content[stop:]
            )
        elif kind == "move":
            content = content[stop:] + part + content[:start]
        else:
            content = content[:start] + part.swapcase() + content[stop:]
    return content


@st.composite
def changed(draw: st.DrawFn, good: Any) -> Any:
    """A JSON value with some values replaced, keys added, lists made long."""
    value = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(0, 3))):
        holder = value
        while isinstance(holder, (dict, list)) and holder:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            key = draw(st.sampled_from(list(keys)))
            if draw(st.booleans()) or not isinstance(holder[key], (dict, list)):
                if isinstance(holder, dict) and draw(st.booleans()):
                    key = draw(ODD_TEXTS | st.sampled_from(KEYS))
                holder[key] = draw(JSON_VALUES)
                break
            holder = holder[key]
    return value


KEYS = [
    "model_type", "architectures", "auto_map", "quantization_config", "hidden_size", "vocab_size",
    "num_hidden_layers", "text_config", "torch_dtype", "dtype", "rope_scaling", "weight_map",
    "__metadata__", "data_offsets", "shape", "size", "rfilename", "sha", "siblings",
    "target_modules",
    "r", "lora_alpha", "rank_pattern", "peft_type", "task_type", "modules_to_save", "edits",
    "patches",
]  # fmt: skip


def json_files(name: str, *good: Any) -> st.SearchStrategy[Files]:
    """One file with JSON: a good one, a changed one, any JSON, or one that is bent."""
    values = st.one_of(*(changed(each) for each in good), JSON_VALUES)
    return bent(values.map(_dumped)).map(lambda content: {name: content})


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()
